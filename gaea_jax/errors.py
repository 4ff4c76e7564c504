"""The one exception for a wrong argument, shared by every room that checks its input."""


class UsageError(ValueError):
    """A wrong argument: which one, and one sentence that says what is accepted.

    Attributes:
      argument: name of the offending argument or config field, in Python spelling (``"batch_size"``). The scripts
        print it as the flag (``--batch-size``) and exit with status 2.
      sentence: what is wrong and what is accepted, without the argument's name.
    """

    def __init__(self, argument: str, sentence: str):
        super().__init__(f"{argument}: {sentence}")
        self.argument = argument
        self.sentence = sentence
