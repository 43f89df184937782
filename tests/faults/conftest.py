from tests.language.conftest import policy, questions

__all__ = ["policy", "questions"]
