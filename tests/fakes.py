"""Parts made up for tests, where a real one is beside the point."""

from dpsyn.api import Api
from dpsyn.embedding import Embedding


class Seeing(Embedding):
    """An embedding for tests, which learns from nothing; they say what it sees."""

    def fingerprint(self):
        return ""

    def reads(self):
        return ()


class Making(Api):
    """An api for tests, which reads nothing."""

    row_bytes = 1

    def generate(self, labels, seeds):
        raise NotImplementedError

    def reads(self):
        return ()
