"""A tokenizer for prompts of made-up words."""

from collections.abc import Sequence


class Words:
    """A tokenizer of one token a word, each a number."""

    bos_token_id, eos_token_id = 1, 2

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the numbers; `[INST]` and `[/INST]` have three tokens each, about as Mistral's."""
        marked = text.replace("[INST]", " 7 8 9 ").replace("[/INST]", " 10 11 12 ")
        return [2 if word == "</s>" else int(word) for word in marked.split()]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Return the numbers as text."""
        return " ".join(map(str, token_ids))
