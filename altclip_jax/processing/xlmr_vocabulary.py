"""The vocabulary in a sentencepiece.bpe.model.

The library is imported when a vocabulary is opened, which can be pickled into worker processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from altclip_jax.processing.slow_vocabulary import SlowVocabulary
from altclip_jax.processing.tokenizer_settings import TokenizerSettings
from altclip_jax.processing.vocabulary import Template


class XLMRVocabulary(SlowVocabulary):
    """XLM-R's sentencepiece model, with the ids that fairseq gave its pieces: all moved up by one, four in front.

    Equal to transformers' slow XLMRobertaTokenizer, special strings within the text included.
    Source: tokenization_xlm_roberta.py of transformers 4.56.2.
    """

    _FIRST = ("<s>", "<pad>", "</s>", "<unk>")

    def __init__(self, folder: str, files: Mapping[str, bytes], settings: TokenizerSettings):
        """Opens the content of the model file, the only one; `folder` is where errors say it is.

        Raises:
            ValueError: the file is not a sentencepiece model.
        """
        ((name, self._data),) = files.items()
        self._name = f"{folder}/{name}"
        self._open()
        self._mask = len(self._model) + 1
        first = dict(zip(self._FIRST, range(4), strict=True))
        super().__init__(settings, self._mask + 1, {**first, "<mask>": self._mask})
        begin, end = self._ids[settings.roles["cls_token"]], self._ids[settings.roles["sep_token"]]
        self.template = Template(prefix=(begin,), suffix=(end,), middle=(end, end), pair_suffix=(end,))

    def _open(self) -> None:
        import sentencepiece

        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(self._data)
        except RuntimeError as error:
            raise ValueError(f"{self._name} is not a sentencepiece model ({error}).") from None

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_model"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def _pieces(self, text: str) -> list[str]:
        return list(self._model.encode(text, out_type=str))

    def _string(self, pieces: Sequence[str]) -> str:
        return "".join(pieces).replace("\N{LOWER ONE EIGHTH BLOCK}", " ").strip()

    def _piece_ids(self, pieces: Sequence[str]) -> list[int]:
        # 0 is the unknown piece
        return [index + 1 if index else self._unknown for index in self._model.piece_to_id(list(pieces))]

    def _piece(self, index: int) -> str | None:
        return self._model.id_to_piece(index - 1) if len(self._FIRST) <= index < self._mask else None

    def _piece_index(self, piece: str) -> int | None:
        index = self._model.piece_to_id(piece)
        return index + 1 if index else None
