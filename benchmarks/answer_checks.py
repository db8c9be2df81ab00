"""What schemathesis looks for in every answer beside what it knows: it loads this file as its hooks."""

import schemathesis

SIGNS = ("Traceback (most recent call last)", 'File "/', "site-packages", ".py")


@schemathesis.check
def shows_no_traceback(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """No answer shows code, its files or its errors."""
    sent = str(case.body)
    shown = [sign for sign in SIGNS if sign.encode() in response.content and sign not in sent]
    assert not shown, f"the answer shows {shown}"
