"""What can go wrong with data: it is not there, or it is not what it says."""


class DataNotFoundError(FileNotFoundError):
    """A data set is in none of its places; the message lists them and says how to get it."""


class DataError(ValueError):
    """A file of a data set is damaged, hostile or of another data set; the message names it."""
