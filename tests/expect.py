"""Judges what one grpcurl call printed.

usage: expect.py FILE EXPRESSION

FILE.out, FILE.err, FILE.code and FILE.took are its stdout, stderr, exit code and duration. EXPRESSION is Python over
  code     exit code
  took     whole seconds
  r, all   the first message, and every message
  status   name of the status, such as "NotFound"; "" without an error
  details  error details by short type name, such as details["BadRequest"]
  text     stdout as it is
A true value passes. A false one prints the call. A string is printed.
"""

import json
import re
import sys
from pathlib import Path


def documents(text):
    decoder, position, found = json.JSONDecoder(), 0, []
    while match := re.compile(r"\s*(?=\{)").match(text, position):
        document, position = decoder.raw_decode(text, match.end())
        found.append(document)
    return found


def names(path):
    out, err = Path(path + ".out").read_text(), Path(path + ".err").read_text()
    status = re.search(r"^  Code: (\w+)$", err, re.M)
    bodies = [documents(err[found.end() :])[0] for found in re.finditer(r"^  \d+\)\t", err, re.M)]
    messages = documents(out)
    return {
        "code": int(Path(path + ".code").read_text()),
        "took": int(Path(path + ".took").read_text()),
        "r": messages[0] if messages else {},
        "all": messages,
        "status": status[1] if status else "",
        # A type that reflection does not know has "@value", in base64: it is not readable.
        "details": {body["@type"].rsplit(".", 1)[1]: body for body in bodies if "@value" not in body},
        "text": out,
    }


def main():
    path, expression = sys.argv[1:]
    try:
        value = eval(expression, names(path))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        value, expression = False, f"{expression}\n  {type(error).__name__}: {error}"
    if isinstance(value, str):
        print(value)
    elif not value:
        print(f"  expected: {expression}")
        for name in ("code", "took", "out", "err"):
            content = Path(f"{path}.{name}").read_text().strip()
            print(f"  {name}: " + content[:4000].replace("\n", "\n    "))
        sys.exit(1)


main()
