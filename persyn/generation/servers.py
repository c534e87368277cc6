"""Servers: one table of what a server can say instead of a response, and what it means.

The backend reads CASES from the first on; the first that fits holds. docs/servers.md is made from the same table. A
server's status alone says little: the same 429 means "wait a second" or "pay first". So a case looks at the status, at
the codes (fields such as code, type and status, wherever the body has them) and at the words.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from persyn.generation.wording import LONG_RUN, shorten, visible_words

Action = Literal["again", "refuse", "skip", "stop", "rename"]
ACTIONS: dict[Action, str] = {
    "again": "asked again, up to `max_attempts` calls; then an error, which the next run asks again",
    "refuse": "an error, which the next run asks again; five of them and no response yet: the run stops",
    "skip": "a record of its own kind: not asked again at this `max_tokens`, and no error of the teacher",
    "stop": "no call can succeed: no new call starts, those in flight are kept, the run ends with the server's words",
    "rename": "the call is repeated with the token limit under its other name, and so are all later ones",
}
"""What follows, in the words of the page."""
LIMITS = ("max_tokens", "max_completion_tokens")
"""The names under which servers take the limit on response tokens. The first is tried first."""
FEW_REFUSALS = 5
"""So many refusals without a single response end a run."""


def _either(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


@dataclass(frozen=True)
class Case:
    """A line of the table: what a server says, and what it means."""

    name: str
    said: str
    """What it looks like, for the page."""
    action: Action
    cure: str
    """What the user can do."""
    statuses: Collection[int] = ()
    """Of the answer, or of its body where that has one and the answer's is 200. None: any but the usual 200."""
    codes: re.Pattern[str] | None = None
    """Looked for in the body's codes."""
    words: re.Pattern[str] | None = None
    """Looked for in the body's words. With `codes`, either suffices; with neither, the status does."""
    unless: re.Pattern[str] | None = None
    """Not this case if the words or codes say so."""
    needs: Literal["", "limit", "parameter"] = ""
    """It also has to name the token limit, or a parameter that was sent."""
    kind: str = ""
    """Of the record, if there is one."""
    paid: Literal["no", "yes", "perhaps"] = "no"


BAD = frozenset({200, 400, 404, 422})
UNKNOWN = (
    r"unsupported|not supported|not permitted|not allowed|unrecogni[sz]ed|unknown|unexpected|extra_forbidden|"
    r"deprecated|does not (?:accept|take|support|allow)|doesn't support|only (?:the )?default|instead|"
    r"cannot (?:both be|be (?:set|used|specified|given))|not compatible"
)
SOON = r"per.?(?:min|sec|hour)|\b[RT]P[MS]\b|(?:try|retry|wait)\w* (?:again )?(?:in|after|for) |retrydelay"
PASSES = _either(SOON, r"too many requests|concurren|rate.?limit|slow down|throttl")
"""A limit that passes by itself."""
MORE_MONEY = "add credit or raise the limit where the key comes from, then run again"
SPEAKS = (
    r"parameter|argument|field|must be|invalid (?:value|option)|range|may only|should be|fixed at|"
    r"only \S+ is (?:allowed|supported)|参数|validation error"
)
"""Words about a parameter."""
CHECK = (
    "check that name, base_url (it mostly ends in /v1; /chat/completions is added), and the key in the variable named "
    "by api_key_env (without one no key is sent)"
)
SHORTER = (
    "set prompts.max_characters, or lower sampling.max_tokens; once the model has a longer context, another "
    "sampling.max_tokens (one more) asks again"
)

CASES: Sequence[Case] = (
    Case(
        "thought until the limit",
        "400 with words such as `could not finish the message because max_tokens ... was reached`",
        "skip",
        "raise sampling.max_tokens, or turn the model's thoughts off",
        statuses=BAD,
        words=_either(r"could not finish the message", r"(?:output|token)s? limit was reached"),
        kind="empty",
        paid="perhaps",
    ),
    Case(
        "token limit's name",
        "400: `max_tokens` is not supported, use `max_completion_tokens` (or the reverse)",
        "rename",
        "nothing: the other name is used from then on, and the response's key stays the same",
        statuses=BAD,
        codes=_either(r"unsupported_parameter|unknown_parameter|extra_forbidden"),
        words=_either(UNKNOWN, r"use .?max_(?:completion_)?tokens"),
        unless=_either(
            r"context (?:length|window|size)|max_model_len",
            r"greater than|less than|at most|at least|minimum|too (?:large|high|big|small)|fewer|exceed|maximum",
        ),
        needs="limit",
    ),
    Case(
        "no money",
        "a code such as `insufficient_quota` or `budget_exceeded`, with any status",
        "stop",
        MORE_MONEY,
        codes=_either(
            r"insufficient_(?:user_)?(?:quota|balance|credit|fund)|billing|budget_exceeded|payment|arrear|out_of_credit|"
            r"credits?_(?:exhausted|exceeded|required)|quota_exhausted|account_(?:deactivated|suspended|disabled)"
        ),
    ),
    Case(
        "prompt too long",
        "words such as `context_length_exceeded`, `prompt is too long`, `request too large`",
        "skip",
        SHORTER,
        statuses=frozenset({200, 400, 403, 413, 422, 429, *range(500, 505)}),
        codes=_either(
            r"context_(?:length|size|window)?_?exceed|exceed_context|contextwindow|string_above_max|too_large|too_long|"
            r"tokens_limit_reached|max_input"
        ),
        words=_either(
            r"(?:maximum|max|model'?s?) (?:prompt|input) length|exceed\w* (?:the )?model token limit",
            r"range of input length",
            r"inputs?\W+must have less than \d+ tokens",
            r"(?:maximum|max|available|model'?s?) context|context (?:length|window|size|limit)|n_ctx",
            r"(?:prompt|input|message|request|text|content|conversation)s?(?: \w+){0,3} (?:is|are|was) (?:\w+ )?"
            r"too (?:long|large)",
            r"request (?:entity |body )?too large|payload too large|content too large",
            r"too many (?:input |prompt )?tokens",
            r"(?:input|prompt)[\w `'\"]*tokens?[^.]{0,60}(?:exceed|longer|greater|more than|must be|\+)",
            r"reduce (?:the|your) (?:length|prompt|message|input)|tokens? must be reduced",
            r"(?:exceed\w*|longer than|over) (?:the )?(?:maximum |max |model'?s? )?"
            r"(?:allowed |input |prompt |sequence )+(?:length|size|tokens?|limit)",
        ),
        unless=_either(
            r"supports? at most \d+ completion|maximum (?:allowed )?number of output",
            r"^(?!.*(?:context|input|prompt)).*max_(?:completion_|output_|new_)?tokens\W[^;]*"
            r"(?:exceed|too (?:large|high|big)|greater|above|larger|at most|less than)",
        ),
        kind="too_long",
    ),
    Case(
        "prompt too large",
        "413 with other words",
        "skip",
        SHORTER,
        statuses={413},
        kind="too_long",
    ),
    Case(
        "prompt filtered",
        "400 or 403: a content filter, a policy or a moderation refuses this prompt",
        "skip",
        "nothing, or another teacher for such prompts",
        statuses={200, 400, 403, 422, 451, 500},
        codes=_either(
            r"content_?(?:policy|filter|moderation)|responsibleai|moderation|safety|data_?inspection|sensitive|"
            r"invalid_prompt|prohibited_content|blocked|guardrail|policy_violation|recitation"
        ),
        words=_either(
            r"content (?:management |usage |safety )?(?:polic|filter|moderation)|contentpolicy|moderation|flagged",
            r"safety (?:system|filter|polic|check|reason|guideline)|inappropriate|responsible ai|guardrail|"
            r"prohibited (?:content|use)",
            r"violat\w+ (?:\w+ ){0,4}(?:polic|terms|guideline)|prompt was (?:blocked|rejected|refused)",
            r"sensitive (?:content|word)|content exists risk|敏感|不安全|违规|审核",
        ),
        unless=_either(
            r"blocked at the (?:organi[sz]ation|project|account)",
            r"(?:account|organi[sz]ation|project|key|user|access)\w* (?:has|have|was|is|been)\b[^.]*"
            r"(?:suspend|disabl|deactivat|terminat|ban|block)",
        ),
        kind="filtered",
    ),
    Case(
        "rate limit with another status",
        "400, 403, or an error with status 200, with words such as `rate limit` or `too many requests`",
        "again",
        "nothing: `Retry-After` holds all calls back, and fewer are in flight",
        statuses={200, 400, 403},
        codes=_either(r"rate_?limit|too_many_requests|throttl"),
        words=_either(r"rate.?limit|too many requests|throttl"),
        kind="rate_limit",
    ),
    Case(
        "limit that does not pass",
        "429 with words such as `per day` or `exceeded your current quota, check your billing`, and no time to wait",
        "stop",
        MORE_MONEY,
        statuses={429},
        words=_either(
            r"per.?(?:day|month)|exceeded your current quota.*(?:plan|billing)|trial key",
            r"余额|充值|欠费|额度.{0,6}(?:用尽|用完|不足)",
        ),
        unless=_either(SOON),
    ),
    Case(
        "rate limit that passes",
        "429 with words such as `per minute` or `try again in 6 s`",
        "again",
        "nothing: `Retry-After` holds all calls back, and fewer are in flight",
        statuses={429},
        codes=PASSES,
        words=PASSES,
        kind="rate_limit",
    ),
    Case(
        "no money, in words",
        "words such as `exceeded your current quota`, `credit balance is too low`, `requires more credits`",
        "stop",
        MORE_MONEY,
        statuses={200, 400, 401, 403, 412, 422, 429},
        words=_either(
            r"exceeded your (?:current |monthly |daily )?quota|insufficient (?:\w+ )?(?:balance|credit|fund|quota)",
            r"credit balance|(?:out of|no|more|add|purchase|buy|enough|remaining) credits?\b",
            r"budget has been exceeded",
            r"(?:exceeded|over|crossed|exceeds)\W*(?:the |your |its )?budget|payment (?:is )?required|\btop.?up",
            r"recharge|arrears|not enough (?:balance|credits?|quota)|(?:quota|balance) is not enough",
            r"余额|充值|欠费|额度.{0,6}(?:用尽|用完|不足)",
            r"account (?:is |has been |was )?(?:suspended|deactivated|disabled|not active|overdue|inactive)|unpaid",
            r"(?:spend\w*|usage|monthly|daily|billing|credit|hard|balance)\w* (?:limit|quota|cap)s?\b",
            r"billing (?:details|is)",
            r"quota (?:\w+ ){0,2}(?:exceed|exhaust|reached|used up)|per.?day|\b[RT]PD\b|free.?tier",
        ),
    ),
    Case(
        "no payment",
        "402",
        "stop",
        MORE_MONEY,
        statuses={402},
    ),
    Case(
        "no key",
        "words such as `invalid api key`, with another status than 401",
        "stop",
        CHECK,
        statuses={200, 400, 403},
        codes=_either(
            r"invalid_?api_?key|api_?key_?invalid|authentication|unauthenticated|unauthori[sz]ed|invalid_?token"
        ),
        words=_either(
            r"(?:invalid|incorrect|missing|no|wrong|expired|unknown|bad|provide|valid) (?:\w+ )?api.?key",
            r"unauthori[sz]ed",
            r"api.?key (?:\w+ ){0,3}(?:invalid|not valid|missing|expired|incorrect|required|not found|revoked)|"
            r"authentication|invalid (?:access |bearer |auth\w* )?token|not authenticated|credentials",
        ),
    ),
    Case("wrong key", "401, 407", "stop", CHECK, statuses={401, 407}),
    Case(
        "no such model",
        "words such as `the model does not exist`, with another status than 404",
        "stop",
        CHECK,
        statuses={200, 400, 403, 422},
        codes=_either(
            r"model_?not_?found|deployment_?not_?found|invalid_?model|unknown_?model|model_not_(?:available|supported)|"
            r"model_(?:decommissioned|terms_required|permission_blocked)"
        ),
        words=_either(
            r"model\b.{0,120}?(?:does not exist|not have access|not found|doesn't exist|is not (?:a )?(?:known|valid))",
            r"model not exist|no models? (?:is |are )?loaded|provider not provided|"
            r"model\b.{0,80}?(?:has been (?:decommissioned|deprecated|retired|removed)|requires terms)",
            r"model\b.{0,80}?is not supported by any|blocked at the (?:organi[sz]ation|project)",
            r"(?:no such|unknown|invalid|unsupported) model|not a valid model|no (?:available )?(?:channel|deployment)",
        ),
    ),
    Case("wrong address or model", "404, 405, 410, 501", "stop", CHECK, statuses={404, 405, 410, 501}),
    Case(
        "no service to this account",
        "words such as `organization has been disabled`, `location is not supported`, with another status than 403",
        "stop",
        "ask whoever runs the server: it refuses the account or the place, not the prompt",
        statuses={200, 400, 412, 422},
        codes=_either(r"(?:organi[sz]ation|account|project)_(?:restricted|suspended|disabled)|unsupported_country"),
        words=_either(
            r"(?:account|organi[sz]ation|project|team)\b.{0,40}? (?:has been|is|was) "
            r"(?:restrict|suspend|disabl|deactivat|archiv|block|bann)",
            r"(?:location|country|region|territory)\b.{0,30}? not supported|token seems invalid",
        ),
    ),
    Case(
        "no permission",
        "403 with other words",
        "stop",
        "ask for access to the model, or check the key in the variable named by api_key_env",
        statuses={403},
    ),
    Case(
        "no such way of asking",
        "words such as `must have stream=true`, `only supported in v1/responses`, `does not support chat`",
        "stop",
        "take another model, or set what the server asks for in the teacher's extra_body; a call is never streamed",
        statuses=BAD,
        words=_either(
            r"stream\W{0,3}=\W?true|only supports? stream|non-stream\w* call|only (?:be )?supported in v1/",
            r"does not support chat|operation does not work with the specified model|unexpected endpoint",
        ),
    ),
    Case(
        "loading or overloaded, with 400",
        "400 with words such as `model is currently loading`, `overloaded`, `server is busy`",
        "again",
        "nothing",
        statuses={400},
        words=_either(r"\bis (?:currently |still )?(?:loading|busy|overloaded)|over capacity"),
        kind="server",
    ),
    Case(
        "unknown parameter",
        "400 or 422 that names a parameter which was sent: `temperature` is not supported, `seed` is not permitted",
        "stop",
        "change it or take it out of the teacher's sampling; null, where it may be null, is not sent",
        statuses=BAD,
        needs="parameter",
    ),
    Case(
        "unknown parameter, unnamed",
        "400 or 422 with a code such as `unknown_parameter` or `extra_forbidden`",
        "stop",
        "take that parameter out of the teacher's entry",
        statuses=BAD,
        codes=_either(
            r"unsupported_parameter|unknown_parameter|extra_forbidden|unrecognized_(?:request_)?(?:argument|parameter)"
        ),
        words=_either(
            r"unrecogni[sz]ed request argument|unknown (?:parameter|argument|field)|unknown name|unexpected keyword|"
            r"extra (?:inputs|fields) (?:are )?not permitted"
        ),
    ),
    Case(
        "overloaded or failed, in an error with status 200",
        "a body with an error and status 200 that says `overloaded`, `upstream`, `timeout`, `internal error`",
        "again",
        "nothing",
        statuses={200},
        codes=_either(r"overloaded|unavailable|server_error|internal|api_error|timeout|upstream|provider_error"),
        words=_either(r"overload|unavailable|internal|timed? ?out|upstream|provider returned|try again|loading|busy"),
        kind="server",
    ),
    Case(
        "rate limit",
        "429 with other words",
        "again",
        "nothing: `Retry-After` holds all calls back, and fewer are in flight. 429 alone for max_outage ends the run",
        statuses={429, 498},
        kind="rate_limit",
    ),
    Case(
        "conflict or time-out at the server",
        "408, 409, 425, 499",
        "again",
        "nothing",
        statuses={408, 409, 425, 499},
        kind="server",
    ),
    Case(
        "invalid parameter, as a failure",
        "500 with words such as `1 validation error` that name a parameter which was sent (llama-cpp-python)",
        "stop",
        "change it or take it out of the teacher's sampling; null, where it may be null, is not sent",
        statuses={500},
        words=_either(r"\d validation errors?\b"),
        needs="parameter",
    ),
    Case(
        "server failed",
        "500 to 599",
        "again",
        "nothing: a server that answered before is waited for, up to `max_outage`",
        statuses=frozenset(range(500, 600)),
        kind="server",
    ),
    Case(
        "error with status 200",
        "a body with an error instead of choices, and no other case",
        "refuse",
        "see the server's words",
        statuses={200},
        kind="refused",
    ),
    Case(
        "redirect",
        "300 to 399: a redirect could carry the key to another host, so it is not followed",
        "refuse",
        "set base_url to the address that it redirects to",
        statuses=frozenset(range(300, 400)),
        kind="refused",
    ),
    Case(
        "refused",
        "any other status below 500",
        "refuse",
        "see the server's words: it takes no such prompt or setting",
        kind="refused",
    ),
)
"""First fit."""

# What is no answer of the kinds above: the backend names these cases itself.
FILTERED = Case(
    "response filtered",
    "200 with finish_reason `content_filter`, `SAFETY`, `RECITATION` ..., or a `refusal` without content",
    "skip",
    "nothing, or another teacher for such prompts",
    kind="filtered",
    paid="yes",
)
TOOLS = Case(
    "tool call",
    "200 with finish_reason `tool_calls` or `function_call` and no text",
    "skip",
    "nothing, or another teacher: no tools were offered",
    kind="tool_calls",
    paid="yes",
)
EMPTY = Case(
    "empty, and it cost no response token",
    "200 with `content` null or empty, finish_reason `stop`, 0 response tokens",
    "again",
    "nothing; what stays empty is an empty response",
    kind="empty",
    paid="yes",
)
BROKEN_OFF = Case(
    "broken off",
    "200 with finish_reason `error`, `abort` ... and no text",
    "again",
    "nothing",
    kind="server",
    paid="yes",
)
MALFORMED = Case(
    "no chat completion",
    "200 with HTML, cut JSON, or JSON without choices",
    "again",
    "check that base_url is the API's address (it mostly ends in /v1)",
    kind="malformed",
    paid="perhaps",
)
CUT = Case(
    "cut in the body",
    "200, then the connection ends before the body does",
    "again",
    "nothing",
    kind="connection",
    paid="perhaps",
)
TIMEOUT = Case(
    "no answer in time",
    "the request was sent, and `timeout` seconds went by",
    "again",
    "raise speed.openai.timeout, or lower concurrency",
    kind="timeout",
    paid="perhaps",
)
CONNECTION = Case(
    "connection lost",
    "the connection failed before an answer began (a kept-alive one was closed, a reset)",
    "again",
    "nothing: a server that answered before is waited for, up to `max_outage`",
    kind="connection",
)
UNREACHABLE = Case(
    "never reached",
    "connection refused, unknown host, no route, or no TLS, and it never answered in this run",
    "stop",
    "check base_url (host and port), and that the server runs",
)
BODILESS: Sequence[Case] = (FILTERED, TOOLS, EMPTY, BROKEN_OFF, MALFORMED, CUT, TIMEOUT, CONNECTION, UNREACHABLE)


@dataclass(frozen=True)
class Said:
    """What an answer's body says, whatever its form: an object, a list, text, HTML, or json inside text."""

    status: int
    codes: tuple[str, ...] = ()
    words: str = ""
    parameter: str = ""
    """The field that the body names as the cause."""

    def told(self) -> str:
        """Codes and words in one line, for messages and records."""
        codes = ", ".join(dict.fromkeys(code for code in self.codes if code != str(self.status)))
        return ": ".join(filter(None, (codes[:120], f'"{shorten(self.words)}"' if self.words else "")))


@dataclass(frozen=True)
class Verdict:
    """The case that an answer is, and what its body says."""

    case: Case
    said: Said = field(default_factory=lambda: Said(0))
    parameter: str = ""
    """The parameter that was sent and is refused."""


def read_verdict(
    status: int, body: Any, sent: Mapping[str, Any], prompt: Sequence[str] = (), secrets: Sequence[str] = ()
) -> Verdict:
    """What an answer without a response means.

    Args:
        status: of the answer.
        body: decoded json, or text.
        sent: the fields of the request's body.
        prompt: the texts of the conversation. What the body repeats of them at length is hidden before it is read, so
            that a prompt cannot decide; what is shown has no three words in a row of them.
        secrets: the key, which is hidden too.
    """
    heard = read_said(status, body)
    said = replace(heard, words=visible_words(heard.words, prompt, secrets, run=LONG_RUN))
    limit = next((name for name in LIMITS if name in sent), "")
    parameter = named_parameter(said, sent)
    case = next(case for case in CASES if _fits(case, said, limit, parameter))
    parameter = limit if case.needs == "limit" else parameter
    shown = replace(said, words=visible_words(said.words, prompt, secrets))
    return Verdict(_of_everyone(case, said, sent.get(limit)), shown, parameter)


def _fits(case: Case, said: Said, limit: str, parameter: str) -> bool:
    codes = " ".join(said.codes)
    if case.statuses and said.status not in case.statuses:
        return False
    if case.unless and case.unless.search(f"{said.words} {codes}"):
        return False
    if case.needs == "limit" and not (limit and (said.parameter == limit or _names(said.words, limit))):
        return False
    if case.needs == "parameter" and not parameter:
        return False
    if case.name == "prompt too long" and said.status == 429:  # it never fits, or it fits a minute later
        return bool(re.search(r"too large|must be reduced", said.words, re.IGNORECASE))
    if not (case.codes or case.words):
        return True
    return bool((case.codes and case.codes.search(codes)) or (case.words and case.words.search(said.words)))


def _of_everyone(case: Case, said: Said, limit: Any) -> Case:
    """A context that max_tokens alone fills is too short for every prompt: then the case stops the run."""
    found = re.search(r"context[^.\d]{0,40}?(\d[\d,]*)", said.words) if case.kind == "too_long" else None
    if not (found and isinstance(limit, int) and limit >= int(found[1].replace(",", "")) > 0):
        return case
    return replace(case, action="stop", cure="lower sampling.max_tokens: it alone fills the model's context")


def named_parameter(said: Said, sent: Mapping[str, Any]) -> str:
    """The sent parameter that the body is about; empty if there is none.

    A name that is also a plain word counts only in words that speak of parameters.
    """
    names = {inner: name for name, value in sent.items() if isinstance(value, Mapping) for inner in value}
    names = {**names, **{name: name for name in sent if name not in ("model", "messages")}}
    about = re.split(r"[.\[]", said.parameter)[0]
    if about in names:
        return about
    if about in ("model", "messages"):
        return ""
    speaks = re.search(rf"{UNKNOWN}|{SPEAKS}", said.words, re.IGNORECASE)
    for name in names:
        found = _names(said.words, name) or _names(said.words, name.capitalize()) or f"{name}参数" in said.words
        if found and (speaks or "_" in name):
            return name
    return ""


def _names(words: str, name: str) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", words))


CODE_FIELDS = ("code", "type", "status", "reason", "error_code", "__type", "quotaId", "quota_id", "finish_reason")
WORD_FIELDS = ("message", "msg", "detail", "error", "error_description", "error_message", "title", "raw", "description")
INNER_FIELDS = (
    "error",
    "errors",
    "detail",
    "details",
    "innererror",
    "metadata",
    "message",
    "raw",
    "violations",
    "ctx",
    "provider_specific_fields",
    "previous_errors",
)


def read_said(status: int, body: Any) -> Said:
    """Codes, words and parameter of a body. Only known fields are read: others may repeat the prompt."""
    body = _decoded(body)
    codes: list[str] = []
    words: list[str] = []
    parameters: list[str] = []
    if isinstance(body, str):
        words.append(_without_tags(body))
    for name, value in _fields(body):
        if name in CODE_FIELDS and isinstance(value, str | int) and not isinstance(value, bool):
            codes.append(str(value)[:60])
        elif name == "param" and isinstance(value, str):
            parameters.append(value)
        elif name == "loc" and isinstance(value, list):
            parameters.append(".".join(str(part) for part in value if part != "body"))
        elif name in WORD_FIELDS and isinstance(value, str):
            words.append(_without_tags(value))
    if status == 200:
        status = next((int(code) for code in codes if re.fullmatch(r"[45]\d\d", code)), 200)
    plain = ("error", "object", "null", "none", "")
    return Said(
        status,
        tuple(code for code in codes if code.lower() not in plain),
        "; ".join(dict.fromkeys(filter(None, words))),
        next(iter(parameters), ""),
    )


def _fields(body: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Fields of a body and of what is nested in it, outer ones first."""
    if depth > 6:
        return
    if isinstance(body, list):
        for item in body[:20]:
            yield from _fields({"message": item} if isinstance(item, str) else item, depth + 1)
    if isinstance(body, Mapping):
        texts = {name: _decoded(value) for name, value in body.items()}
        yield from ((name, value) for name, value in texts.items() if not isinstance(value, Mapping))
        for name in INNER_FIELDS:
            if isinstance(texts.get(name), Mapping | list):
                yield from _fields(texts[name], depth + 1)


def _decoded(value: Any) -> Any:
    """Text that is json, read; other values as they are. Proxies send their server's body as text."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _without_tags(text: str) -> str:
    """Text without HTML: what a page shows."""
    if re.search(r"<(?:!doctype|html|head|body|title|h1|p|center)\b", text, re.IGNORECASE):
        text = re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL | re.IGNORECASE)
    return " ".join(text.split())[:4000]


def is_error(body: Any) -> bool:
    """Whether the body of an answer with status 200 is an error: it has one, and no choices."""
    body = body[0] if isinstance(body, list) and body else body
    if not isinstance(body, Mapping) or body.get("choices"):
        return False
    return bool(body.get("error") or body.get("errors") or body.get("detail")) or (
        str(body.get("object", "")).lower() == "error"
        or (body.get("type") == "error")
        or (isinstance(body.get("message"), str) and "choices" not in body)
    )
