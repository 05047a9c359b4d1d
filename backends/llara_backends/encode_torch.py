"""Encoder backend ``torch``: any Hugging Face decoder with a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from llara_cli.core.protocols import Advance, Role
from llara_cli.model.backends import Encoded, EncoderBackend, EncoderFacts, EncoderOptions
from llara_cli.model.decoder import Decoder, choose_device, choose_dtype
from llara_cli.model.encoder import Encoder, Sequencer, choose_length
from llara_cli.model.loading import load_causal_lm, load_config, max_positions
from llara_cli.model.model_info import ModelFacts
from llara_cli.model.source import ModelSource
from llara_cli.model.tokenizer import TextTokenizer


class TorchEncoder(EncoderBackend):
    """Batches of similar lengths, by tokens, through the decoder's body; the LM head never runs."""

    name = "torch"

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    @classmethod
    def facts(cls, source: ModelSource) -> EncoderFacts:
        """Parameters and hidden size, from the configuration."""
        found = ModelFacts.of(source)
        return EncoderFacts(found.parameters, found.hidden_size, 2.0 * found.linear_parameters, found.token_numbers)

    @classmethod
    def count_tokens(cls, source: ModelSource, texts: Sequence[str], role: Role, length: int | None) -> tuple[int, int]:
        """Tokens of the truncated texts, and of their sequences with the role's prompt."""
        lengths = {role: cls.choose_length(source, length) or 0}
        tokenizer = TextTokenizer.load(source)
        tokenizer.check_ids(source.recipe, ModelFacts.of(source).embedded_tokens, source.path)
        found = Sequencer(tokenizer, source.recipe, lengths).trees(texts, role)
        return found.tokens, sum(len(tree) for tree in found.trees)

    @classmethod
    def choose_length(cls, source: ModelSource, length: int | None) -> int | None:
        """``length``, or the default limited to the model's positions."""
        return choose_length(length, max_positions(load_config(source)))

    @classmethod
    def load(cls, source: ModelSource, options: EncoderOptions) -> TorchEncoder:
        """Load weights and tokenizer. Raises ``UserError`` for a length that model or prompt cannot take."""
        device = choose_device(options.device)
        load_config(source)  # if the model does not exist, its error says so; that of the tokenizer would not
        tokenizer = TextTokenizer.load(source)
        model = load_causal_lm(source, choose_dtype(options.dtype, device))
        decoder = Decoder(model.to(device).eval())
        decoder.check(source.path)
        decoder.use_attention(options.attention)
        if options.compile:
            decoder.compile_layers()
        lengths: dict[Role, int] = {
            "query": choose_length(options.query_length, decoder.max_positions),
            "passage": choose_length(options.passage_length, decoder.max_positions),
        }
        recipe = source.recipe
        tokenizer.check_ids(recipe, decoder.embedded_tokens, source.path)
        if warning := tokenizer.contradiction():
            options.note(f"{source.path}: {warning}")
        sequencer = Sequencer(tokenizer, recipe, lengths)
        return cls(Encoder(decoder, recipe, sequencer, options.batch_tokens, options.layout, options.note))

    @property
    def dim(self) -> int:
        """Width of a vector: the model's hidden size."""
        return self._encoder.decoder.dim

    def encode(self, texts: Sequence[str], role: Role, progress: Advance | None = None) -> Encoded:
        """Vectors (texts, dim) in the order of ``texts``."""
        return self._encoder.encode(texts, role, progress)

    def encode_each(
        self, batches: Iterable[Sequence[str]], role: Role, progress: Advance | None = None
    ) -> Iterator[Encoded]:
        """``encode`` of each batch; the next batch is tokenized meanwhile."""
        return self._encoder.encode_each(batches, role, progress)
