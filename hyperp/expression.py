"""Arithmetic on named numbers, such as batch/(lr*wd*tokens) of table columns, without evaluating any code.

Python's own parser supplies the grammar and the precedence. It sees only numbers, signs, the names of
functions and placeholders for columns, and `_value` computes only the nodes in ALLOWED_NODES.
"""

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hyperp.near_names import close_names, listed_names

WORD = re.compile(
    r"(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))"
    r"|`(?P<quoted>[^`]+)`"
    r"|(?P<name>[^\W\d]\w*(?:\.\w+)*)"
    r"|(?P<sign>\*\*|[-+*/()])"
)
PLAIN = re.compile(r"[^\W\d]\w*(?:\.\w+)*")
Values = np.ndarray | np.float64
FUNCTIONS: Mapping[str, Callable[[Values], Values]] = {
    "sqrt": np.sqrt,
    "log": np.log,
    "log2": np.log2,
    "log10": np.log10,
    "exp": np.exp,
    "round": np.round,
    "floor": np.floor,
    "ceil": np.ceil,
}
OPERATORS: Mapping[type[ast.operator], Callable[[Values, Values], Values]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Pow: np.power,
}
ALLOWED_NODES = (
    ast.Constant,
    ast.Name,
    ast.Load,
    ast.BinOp,
    ast.UnaryOp,
    ast.USub,
    ast.UAdd,
    ast.Call,
    *OPERATORS,
)
ALLOWED = f"numbers, columns, + - * / **, parentheses and {', '.join(FUNCTIONS)}"
LONGEST = 500  # characters; Python's parser holds the nesting that fits into them


@dataclass(frozen=True)
class Word:
    """A word of an expression: "number", "quoted", "name" or "sign", its text, and where it begins."""

    kind: str
    text: str
    start: int

    def __str__(self) -> str:
        return f"{self.text!r} at character {self.start + 1}"


@dataclass(frozen=True)
class Expression:
    """A parsed expression.

    Attributes:
        tree: the whitelisted syntax tree.
        names: the column that each of its placeholders stands for.
    """

    tree: ast.expr
    names: Mapping[str, str]

    def __call__(self, column: Callable[[str], Values]) -> Values:
        """The value, elementwise, NaN where undefined; `column` gives the float64 values of a column."""
        with np.errstate(all="ignore"):
            return _value(self.tree, lambda placeholder: column(self.names[placeholder]))

    @property
    def columns(self) -> list[str]:
        """The columns that occur in it."""
        return list(dict.fromkeys(self.names.values()))

    @property
    def factor(self) -> float | None:
        """c if the expression is c times its only column, else None."""
        if len(self.columns) != 1:
            return None
        one, two, seven = (float(self(lambda _, x=x: np.float64(x))) for x in (1.0, 2.0, 7.0))
        same = np.allclose([two, seven], [2 * one, 7 * one], rtol=1e-12, atol=0)
        return one if same and 0 < one < np.inf else None


def parse_expression(text: str, columns: Sequence[str], asked: str) -> Expression:
    """Parse an expression in these columns; `asked` begins every error.

    A column whose name is no plain word stands in backquotes: `smooth loss`*2.

    Raises:
        ValueError: names the word, its place and close columns.
    """
    words = split_words(text, asked)
    names: dict[str, str] = {}
    parts: list[str] = []
    for index, word in enumerate(words):
        after = words[index + 1] if index + 1 < len(words) else Word("sign", "", len(text))
        called = word.kind == "name" and after.text == "("
        if called and word.text not in FUNCTIONS:
            raise ValueError(f"{asked}: no function {word}; allowed are {ALLOWED}")
        if word.kind == "number":
            parts.append(_finite_number(word, asked))
        elif word.kind == "sign" or called:
            parts.append(word.text)
        else:
            _require_column(word, columns, text, asked)
            parts.append(f"c{index}")
            names[parts[-1]] = word.text
        ends = not called and (word.kind != "sign" or word.text == ")")
        if ends and (after.kind != "sign" or after.text == "("):
            raise ValueError(f"{asked}: a sign is missing before {after}")
    return Expression(_parse(parts, words, asked), names)


def columns_in(text: str) -> list[str]:
    """The words of an expression that name columns; none where it cannot be read."""
    try:
        words = split_words(text, "")
    except ValueError:
        return []
    after = [word.text for word in words[1:]] + [""]
    named = zip(words, after, strict=False)
    return [w.text for w, sign in named if w.kind == "quoted" or (w.kind == "name" and sign != "(")]


def split_words(text: str, asked: str) -> list[Word]:
    """The words of an expression; ValueError names a character that no expression has."""
    if len(text) > LONGEST:
        raise ValueError(f"{asked}: must have at most {LONGEST} characters, got {len(text)}")
    words, at = [], 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        found = WORD.match(text, at)
        if found is None or found.lastgroup is None:
            rest = re.match(r"[\w.]+|.", text[at:], re.DOTALL)
            wrong = Word("", rest[0] if rest else "", at)
            hint = " (a power is **)" if text[at] == "^" else ""
            raise ValueError(f"{asked}: {wrong} is not allowed{hint}; allowed are {ALLOWED}")
        words.append(Word(found.lastgroup, found[found.lastgroup], at))
        at = found.end()
    return words


def _finite_number(word: Word, asked: str) -> str:
    number = float(word.text)
    if number == np.inf:
        raise ValueError(f"{asked}: {word} is too large a number")
    return repr(number)


def _require_column(word: Word, columns: Sequence[str], text: str, asked: str) -> None:
    if word.text in columns:
        return
    odd = [name for name in columns if not PLAIN.fullmatch(name) and word.text in name and name in text]
    near = [*odd, *close_names(text, columns, cutoff=0.8), *close_names(word.text, columns)]
    if near:
        quoted = [name if PLAIN.fullmatch(name) else f"`{name}`" for name in dict.fromkeys(near)]
        hint = f"did you mean {' or '.join(quoted[:3])}?"
    else:
        hint = f"there are {listed_names(columns)}"
    raise ValueError(f"{asked}: no column {word}; {hint}")


def _parse(parts: Sequence[str], words: Sequence[Word], asked: str) -> ast.expr:
    """The tree of these parts, which are the words as Python reads them."""
    _require_complete(words, asked)
    starts = np.cumsum([0, *(len(part) + 1 for part in parts)])

    def at(column: int) -> Word:
        return words[min(int(np.searchsorted(starts, column, side="right")), len(words)) - 1]

    try:
        tree = ast.parse(" ".join(parts), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{asked}: {at((error.offset or 1) - 1)} does not belong there") from None
    except (RecursionError, MemoryError):
        raise ValueError(f"{asked}: is nested too deeply") from None
    for node in ast.walk(tree):
        if not isinstance(node, ALLOWED_NODES) or (isinstance(node, ast.Call) and len(node.args) != 1):
            wrong = at(getattr(node, "col_offset", 0))
            raise ValueError(f"{asked}: {wrong} does not belong there; allowed are {ALLOWED}")
    return tree


def _require_complete(words: Sequence[Word], asked: str) -> None:
    """Name a parenthesis without its partner, or a sign after which something is missing."""
    opened: list[Word] = []
    for word in words:
        if word.kind == "sign" and word.text == "(":
            opened.append(word)
        elif word.kind == "sign" and word.text == ")":
            if not opened:
                raise ValueError(f"{asked}: {word} closes nothing")
            opened.pop()
    if not words:
        raise ValueError(f"{asked}: must be a column or an expression, got nothing")
    if words[-1].kind == "sign" and words[-1].text != ")":
        raise ValueError(f"{asked}: nothing follows {words[-1]}")
    if opened:
        raise ValueError(f"{asked}: {opened[-1]} is never closed")


def _value(node: ast.expr, column: Callable[[str], Values]) -> Values:
    match node:
        case ast.Constant(value=float() as number):
            return np.float64(number)
        case ast.Name(id=name):
            return column(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, column)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand, column)
        case ast.BinOp(left=left, op=sign, right=right):
            return OPERATORS[type(sign)](_value(left, column), _value(right, column))
        case ast.Call(func=ast.Name(id=name), args=[argument]):
            return FUNCTIONS[name](_value(argument, column))
    raise AssertionError(f"{type(node).__name__} passed the check of the tree")
