"""Every error this library raises on purpose. All are ``MMSError``; each message names its culprit and the remedy."""


class MMSError(Exception):
    """Base of all errors raised on purpose by mms_jax."""


class AudioError(MMSError, ValueError):
    """Audio that cannot be used; the message names the file (or array) and the reason."""


class LanguageError(MMSError, ValueError):
    """A language that is unknown or has no adapter here; the message names the nearest ones that are available."""


class CacheError(MMSError, OSError):
    """A compilation cache that cannot be had, or would not be the user's alone; the message names the folder."""


class NumericsError(MMSError, ArithmeticError):
    """A model whose output is NaN or infinite; the message names the item and the dtype."""


class DeviceMemoryError(MMSError, MemoryError):
    """A device without memory for even one item of a batch; the message names its length and the remedy."""


class CheckpointError(MMSError, ValueError):
    """A checkpoint that is wrong or incomplete; the message names the file and the tensor or key."""


class ConfigError(CheckpointError):
    """A config.json whose model this library does not compute exactly."""


class VocabularyError(CheckpointError):
    """A vocabulary or tokenizer file that is malformed or contradicts the model."""


class LanguageModelError(CheckpointError):
    """A language model or lexicon that is damaged or spells in another alphabet; names the file and what differs."""


class AlignmentError(MMSError, ValueError):
    """Text that cannot be aligned with this audio; the message gives the numbers, or the word, and the remedy."""


class SettingError(MMSError, ValueError):
    """A setting out of its range; the message names it, its value and the range."""


class TextError(MMSError, ValueError):
    """Text that cannot be spoken; the message names the item, the symbols and the reason."""


class DatasetError(MMSError, ValueError):
    """A data set that cannot be trained on; the message names the data set, the column or the row, and the remedy."""


class TrainingError(MMSError, RuntimeError):
    """Training that cannot start or go on; the message says at which step and why, and what is kept."""


class MMSWarning(UserWarning):
    """Something that goes on, but not quite as one might think; the message says what, and how to have it otherwise."""
