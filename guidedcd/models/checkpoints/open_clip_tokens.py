"""open_clip's tokens for any size of its byte-pair vocabulary, in Python and as a tokenizer file.

The CLIP tokenizer of transformers differs in four ways that change the text embedding: it does not repair text (ftfy,
HTML entities), it lower-cases by its own rules, its special tokens are spelled otherwise, and it cannot pad with id 0,
which is the id of "!" and must not be a special token. The file written by `write_tokenizer` avoids the last two.
"""

from __future__ import annotations

import functools
import gzip
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from guidedcd.errors import GuidedCDError

if TYPE_CHECKING:
    from transformers import CLIPTextModel

START, END, PAD = "<start_of_text>", "<end_of_text>", "<PAD>"  # clean text is lower case and never has the last
_BYTES = 256


def possible(vocabulary: int) -> bool:
    """Whether the first `vocabulary` tokens of open_clip's vocabulary contain all single bytes and whole merges."""
    return 2 * _BYTES + 2 <= vocabulary <= 49408


@functools.cache
def tokenizer(vocabulary: int = 49408) -> Any:
    """open_clip's tokenizer with the first merges of its vocabulary, so that it has `vocabulary` tokens.

    Raises:
        GuidedCDError: open_clip is missing, or the vocabulary cannot hold the single bytes.
    """
    try:
        from open_clip.tokenizer import SimpleTokenizer, default_bpe
    except ImportError as error:
        raise GuidedCDError("the text side needs open_clip: pip install open_clip_torch") from error
    if vocabulary == 49408:
        return SimpleTokenizer()
    merges = vocabulary - 2 * _BYTES - 2
    if not possible(vocabulary):
        raise GuidedCDError(f"a vocabulary of {vocabulary} tokens is not open_clip's: it has 514 to 49408")
    with gzip.open(default_bpe()) as handle:
        lines = handle.read().decode("utf-8").split("\n")[: merges + 1]
    with tempfile.NamedTemporaryFile(suffix=".gz") as vocabulary_file:
        vocabulary_file.write(gzip.compress("\n".join(lines).encode("utf-8")))
        vocabulary_file.flush()
        return SimpleTokenizer(vocabulary_file.name)


class ClipTokens(nn.Module):
    """A text encoder: captions to open_clip's tokens to the hidden state of a transformers CLIP text model."""

    model: CLIPTextModel

    def __init__(self, model: CLIPTextModel) -> None:
        """Wrap a `CLIPTextModel` whose vocabulary is open_clip's, or the beginning of it."""
        super().__init__()
        self.model = model

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Token ids (B, L), padded with 0; longer captions are cut and end with the end token."""
        config = self.model.config
        return tokenizer(config.vocab_size)(list(captions), context_length=config.max_position_embeddings)

    def count(self, caption: str) -> int:
        """Number of tokens, special ones included, before truncation."""
        return len(tokenizer(self.model.config.vocab_size).encode(caption)) + 2

    def encode(self, tokens: Tensor) -> Tensor:
        """Hidden states (B, L, D) of token ids; every position is attended to, padding included."""
        device = next(self.model.parameters()).device
        return self.model(input_ids=tokens.to(device)).last_hidden_state

    def forward(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """{"prompt_embeds": (B, L, D)}."""
        return {"prompt_embeds": self.encode(self.tokenize(captions))}


def clean(text: str) -> str:
    """open_clip's normalised caption: repaired, unescaped, whitespace collapsed, lower case."""
    from open_clip.tokenizer import basic_clean, whitespace_clean

    return whitespace_clean(basic_clean(text)).lower()


def write_tokenizer(folder: Path, vocabulary: int, length: int) -> None:
    """Write a tokenizer folder that transformers' `CLIPTokenizer` reads and that gives open_clip's ids on clean text.

    Two tokens share id 0: "!" of the vocabulary, and a special token for padding, so that neither disturbs the other.

    Args:
        folder: Created if it is missing.
        vocabulary: Number of tokens.
        length: Context length.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = tokenizer(vocabulary)
    vocab = {PAD: 0, **source.encoder}
    merges = [" ".join(pair) for pair in source.bpe_ranks]
    special = {END: vocabulary - 1, PAD: 0, START: vocabulary - 2}
    options = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": PAD,
        "do_lower_case": True,
        "errors": "replace",
    }
    _write(folder / "tokenizer.json", _definition(vocab, merges, special))
    _write(folder / "tokenizer_config.json", options)
    _write(folder / "vocab.json", vocab)
    _write(folder / "special_tokens_map.json", {k: options[k] for k in options if k.endswith("_token")})
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")


def _definition(vocab: dict[str, int], merges: list[str], special: dict[str, int]) -> dict[str, Any]:
    """The content of tokenizer.json: byte-pair encoding with `special` tokens around a text."""
    added = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token, index in special.items()
    ]
    one = {"type_id": 0}
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Lowercase"},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": START, **one}},
                {"Sequence": {"id": "A", **one}},
                {"SpecialToken": {"id": END, **one}},
            ],
            "pair": [{"Sequence": {"id": "A", **one}}, {"Sequence": {"id": "B", **one}}],
            "special_tokens": {t: {"id": t, "ids": [special[t]], "tokens": [t]} for t in (START, END)},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": END,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=None) + "\n", encoding="utf-8")
