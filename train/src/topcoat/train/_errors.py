"""The errors a user of the trainer can meet; each says what came, what is wanted and what to do."""


class TopcoatError(Exception):
    """Base of every error that the trainer raises on purpose."""


class RecipeError(TopcoatError, ValueError):
    """A recipe or one of its fields cannot be used."""


class PictureError(TopcoatError, ValueError):
    """A picture file cannot be used."""


class OutOfMemoryError(PictureError):
    """A picture needs more memory than there is."""


class ContentError(TopcoatError, ValueError):
    """The folder of photographs cannot be trained on."""


class LossWeightsError(TopcoatError, ValueError):
    """The weights of the loss network are missing, incomplete or not what they should be."""


class MissingLossWeightsError(LossWeightsError):
    """No place has the weights of the loss network, and they cannot be downloaded.

    Args:
        message: for the user.
        reason: why the download failed, in a few words.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class CheckpointError(TopcoatError, ValueError):
    """A checkpoint file cannot be read, or cannot be continued."""


class OutputError(TopcoatError, OSError):
    """A result cannot be written where it was asked for."""


class DivergenceError(TopcoatError, ArithmeticError):
    """Training met NaN or infinity more often than it may roll back."""
