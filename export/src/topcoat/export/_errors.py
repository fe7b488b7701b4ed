"""The errors a user of the exporter can meet; each says what came, what is wanted, what to do."""


class TopcoatError(Exception):
    """Base of every error that the exporter raises on purpose."""


class GraphError(TopcoatError, RuntimeError):
    """A network became a graph that breaks the frame contract: our fault, or a new torch's."""


class WeightsError(TopcoatError, ValueError):
    """A checkpoint was read, but its weights are not ones that an engine can be made of."""


class PhotographError(TopcoatError, ValueError):
    """There is no usable photograph where one is needed."""


class BundleNameError(TopcoatError, ValueError):
    """A bundle cannot have this name."""


class OutputError(TopcoatError, OSError):
    """A result cannot be written where it was asked for."""


class EngineRequestError(TopcoatError, ValueError):
    """An engine was asked for that cannot be: unknown, or with sizes or targets that do not fit."""


class EngineLibraryError(TopcoatError, RuntimeError):
    """The library that builds an engine is not installed, cannot be loaded or lacks its GPU."""


class EngineBuildError(TopcoatError, RuntimeError):
    """A library refused to build an engine from a model; the text holds every reason it gave."""


class SourceError(TopcoatError, ValueError):
    """A file holds no network that can become a bundle."""


class PrecisionError(TopcoatError, ValueError):
    """A precision was asked for that the network does not bear."""


class QuantisationError(TopcoatError, ValueError):
    """A network's picture does not bear 8-bit arithmetic, or the graph has none to quantise."""
