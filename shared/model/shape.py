"""The shape of a model and what it counts to."""

from dataclasses import dataclass

from shared.errors import BitlawError


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder: blocks of attention (four d x d matrices) and SwiGLU (three d x f matrices)."""

    n_layer: int
    d_model: int
    d_ff: int
    head_size: int = 32
    vocabulary: int = 1024
    context: int = 256

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or value < 1:
                raise BitlawError(f"model shape: {name} is {value!r}, it must be a whole number above 0")
        if self.d_model % self.head_size or self.head_size % 2:
            raise BitlawError(
                f"model shape: d_model {self.d_model} must be a multiple of an even head_size ({self.head_size})"
            )

    @property
    def n_blocks(self) -> int:
        """Parameters of the blocks' matrices: the N of every law (non-embedding; norm gains not counted)."""
        return self.n_layer * (4 * self.d_model**2 + 3 * self.d_model * self.d_ff)

    @property
    def n_embedding(self) -> int:
        return self.vocabulary * self.d_model

    @property
    def n_head(self) -> int:
        return self.vocabulary * self.d_model

    @property
    def n_norms(self) -> int:
        return (2 * self.n_layer + 1) * self.d_model

    def flops_per_token(self) -> int:
        """Training FLOPs a token: 6 for each parameter of blocks and head, and attention over the past half.

        Attention multiplies q k^T and a v over T/2 positions on average: 2 * 2 * D * T/2 forward, three times
        that with the backward pass. The embedding is a look-up and counts nothing.
        """
        return 6 * (self.n_blocks + self.n_head) + 6 * self.n_layer * self.d_model * self.context
