"""The embedded proving ground: captioned videos of moving shapes, an oracle that measures them, and small trained models."""
