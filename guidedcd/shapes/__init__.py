"""The embedded proving ground: captioned videos of moving shapes, an oracle of them, and small trained models."""
