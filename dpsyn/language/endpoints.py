"""One endpoint of OpenAI's protocol: its address, its key, its HTTP client, and what its refusals mean."""

from __future__ import annotations

import base64
import email.utils
import hashlib
import importlib
import json
import os
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from html import unescape
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from dpsyn.errors import UserError, invalid, missing

if TYPE_CHECKING:
    from aiohttp import ClientSession, TCPConnector
    from yarl import URL

DEFAULT_URL = "https://api.openai.com/v1"  # named, so that no variable of the environment sends requests elsewhere
OF_OPENAI = ("OpenAI-Organization", "OpenAI-Project")  # taken from the environment; no other endpoint's business
ABOUT_THIS_MACHINE = ("OS", "Arch", "Runtime", "Runtime-Version", "Lang", "Package-Version", "Async")
PATHS = r"/+(?:chat/completions|completions|images/(?:generations|edits|variations))$"  # of a request, not of the base
LONGEST_RETRY_AFTER = 600.0  # seconds, however long an endpoint asks for
MOST_WORDS = 300  # characters of an endpoint's own words in a message
CONNECT = 10.0  # seconds in which a connection must stand, however long an answer may take
KEPT = 4.0  # seconds that a connection may be idle; many servers close it after 5, maybe as a request comes
LONGEST_HEADER = 65536  # bytes of a line of an answer's head
LIKE_THE_KEY = 6  # characters at the beginning or the end that a word shares with the key

FILTERED = re.compile(r"content.?(policy|filter)|moderation|safety|responsible.?ai", re.IGNORECASE)
UNKNOWN = re.compile(
    r"(?:unknown|unrecogni[sz]ed|unexpected|extra|unsupported) (?:\w+ )?(?:param|arg|field|input|key|propert)"
    r"|(?:is|are) not (?:enabled|supported|available|allowed)",
    re.IGNORECASE,
)
TOO_LONG = re.compile(
    r"context.?(length|size|window)|maximum context|too (long|large)|exceeds? .{0,40}\btokens", re.IGNORECASE
)
NO_CREDIT = re.compile(
    r"insufficient.?(?:quota|funds|balance|credit)|billing.?(?:hard|not.?active)|exceeded your current quota"
    r"|credit balance|out of credits?",
    re.IGNORECASE,
)
PASSING = re.compile(
    r"overload|rate.?limit|capacity|try again|temporar|time.?out|timed out|unavailable|busy|loading|too many", re.I
)
OF_A_KIND = {  # types and codes of errors that come with status 200, where the status belongs
    "authentication_error": 401,
    "invalid_api_key": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "model_not_found": 404,
    "insufficient_quota": 402,
    "billing_error": 402,
    "invalid_request_error": 400,
    "badrequesterror": 400,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "overloaded_error": 529,
}


class Failed(Exception):
    """No answer. kind: 'limit' (429), 'down' (not reached), 'slow' (timed out), 'unread' (status 200, and no answer in
    it) or 'broken' (all else); the last three may be the row's own fault. after: seconds until when to come back, where
    the endpoint says so. sent: it may have been answered, and paid for."""

    def __init__(self, why: str, kind: str, after: float | None = None, sent: bool = False) -> None:
        super().__init__(why)
        self.why, self.kind, self.after, self.sent = why, kind, after, sent


class OutOfCredit(UserError):
    """This key cannot pay; another may."""


@dataclass(frozen=True)
class Endpoint:
    """url: None: OpenAI's. key: None: it needs none. key_env: the environment variable that the key is of."""

    url: str | None
    key: str | None = field(repr=False)
    key_env: str | None

    @property
    def host(self) -> str:
        return urlsplit(self.base).netloc.rpartition("@")[2]

    @property
    def base(self) -> str:
        """Without a query, the path of a request, and a slash at the end."""
        scheme, netloc, path, _, _ = urlsplit((self.url or DEFAULT_URL).strip())
        return urlunsplit((scheme, netloc, re.sub(PATHS, "", path.rstrip("/")).rstrip("/"), "", ""))

    @property
    def query(self) -> dict[str, str]:
        """Of every request: `?api-version=...` of the address."""
        return dict(urllib.parse.parse_qsl(urlsplit((self.url or "").strip()).query, keep_blank_values=True))

    @cached_property
    def digest(self) -> str:
        """What tells it from others, and does not show it: of its address without a password, and of the query."""
        place = json.dumps([_without_password(self.base), sorted(self.query.items())])
        return hashlib.sha256(place.encode()).hexdigest()


def check_address(url: str | None) -> None:
    """Raises UserError for what is no address."""
    if url is None:
        return
    expected = "an address such as http://localhost:8000/v1, or null"
    try:
        found = urlsplit(url.strip())
        port, host = found.port, (found.hostname or "").encode("idna")
    except ValueError as error:  # a port that is none, [ without ], a label of more than 63 letters
        reason = "A port is a number from 1 to 65535." if "ort" in str(error) else ""
        raise invalid("api.base_url", _without_password(url), expected, reason) from None
    if found.scheme not in ("http", "https") or not host or port == 0 or re.search(r"\s", url.strip()):
        raise invalid("api.base_url", _without_password(url), expected)
    if found.fragment:
        raise invalid("api.base_url", _without_password(url), "an address without #")


def check_key_name(name: Any) -> None:
    """Raises UserError for what is no name of a variable, a key itself say, and does not show it."""
    if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", str(name)):
        expected = "the name of an environment variable in capitals, not the key itself"
        raise invalid("api.api_key_env", "(not shown)", expected, "For instance OPENAI_API_KEY.")


def key_in(name: str | None) -> str | None:
    """The key that an environment variable holds; None: there is no variable. Raises Missing where it is not
    set, UserError for what is no key, and never shows it."""
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        do = "Set it; for an endpoint without keys give api.api_key_env=null."
        raise missing("api.api_key_env", name, "an environment variable that holds the key", do)
    if key[0] in "\"'" and key[-1] == key[0]:
        raise invalid("api.api_key_env", name, "a variable with a key", "There are quotes around it.")
    odd = "a character that is not ASCII (a long dash or a curly quote?)"
    for pattern, what in ((r"[\r\n]", "a line break"), (r"\s", "a space"), (r"[^\x21-\x7e]", odd)):
        if re.search(pattern, key):
            raise invalid("api.api_key_env", name, "a variable with a key in one line of ASCII", f"It contains {what}.")
    return key


@dataclass(frozen=True)
class Response:
    """headers: by name in any case."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


def http_client(endpoint: Endpoint, timeout: float) -> ClientSession:
    """A client of aiohttp that sends the headers of openai's.

    For use in an event loop. Raises UserError for proxies and certificates that cannot be used. aiohttp takes 0.15 ms
    of CPU time a call, openai's own client over httpx 1.5, httpx alone 0.6: their HTTP is written in Python.

    endpoint: whose headers are sent, and whose proxy is used.
    timeout: seconds, of one request.
    """
    import aiohttp

    given = {
        "ssl": _trust(*(os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"))),
        "limit": 0,  # the pacer's business
        "keepalive_timeout": KEPT,
    }
    variable, proxy = _proxy(endpoint) or ("", None)
    if proxy is not None:
        _check_proxy(variable, proxy)
    if proxy is not None and proxy.startswith("socks5"):
        connector, proxy = _through_socks(variable, proxy, given), None
    else:
        connector = aiohttp.TCPConnector(**given)
    return aiohttp.ClientSession(
        connector=connector,
        proxy=proxy,
        headers=_headers(endpoint),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(timeout, connect=min(timeout, CONNECT)),
        max_line_size=LONGEST_HEADER,
        max_field_size=LONGEST_HEADER,
    )


def address(endpoint: Endpoint, path: str) -> URL:
    """Of a request: without the password, which is in a header, and with the query of the endpoint's address.

    endpoint: whose address it begins with.
    path: below it.
    """
    from yarl import URL

    return URL(f"{endpoint.base}/{path}").with_user(None).with_query(endpoint.query)


def _headers(endpoint: Endpoint) -> dict[str, str]:
    """Those of an openai.AsyncOpenAI, without what they tell of this machine."""
    import openai

    elsewhere = OF_OPENAI if endpoint.base != DEFAULT_URL else ()
    untold = [*elsewhere, *(f"X-Stainless-{name}" for name in ABOUT_THIS_MACHINE), "Content-Type"]
    client = openai.AsyncOpenAI(
        base_url=endpoint.base,
        api_key=endpoint.key or "none",
        default_headers={name: openai.Omit() for name in untold},  # type: ignore[misc]
        http_client=http_library().AsyncClient(trust_env=False, verify=False),  # sends nothing
    )
    told = {**client.default_headers, **client.auth_headers}
    headers = {name: value for name, value in told.items() if isinstance(value, str)}
    user, _, at = urlsplit(endpoint.base).netloc.rpartition("@")[0].partition(":")
    if user or at:
        name, password = urllib.parse.unquote(user), urllib.parse.unquote(at)
        headers["Authorization"] = "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()
    if "api-version" in endpoint.query and endpoint.key:
        headers["api-key"] = endpoint.key  # Azure's older addresses know no other
    return headers


def _check_proxy(variable: str, proxy: str) -> None:
    """Raises UserError for what is no proxy."""
    try:
        parts = urlsplit(proxy)
        known = parts.scheme in ("http", "https", "socks5", "socks5h") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is none
        known = False
    if not known:
        expected = "the address of an http proxy, such as http://proxy:3128"
        raise invalid(variable, _without_password(proxy), expected, "Correct it, or unset it.")


def _through_socks(variable: str, proxy: str, given: Mapping[str, Any]) -> TCPConnector:
    """Raises UserError where a package is missing."""
    try:
        from aiohttp_socks import ProxyConnector
    except ImportError:
        do = "A SOCKS proxy needs the package aiohttp-socks: pip install aiohttp-socks. Or unset it."
        raise invalid(variable, _without_password(proxy), "the address of an http proxy", do) from None
    return ProxyConnector.from_url(proxy.replace("socks5h:", "socks5:", 1), rdns=True, **given)


@cache
def errors_of_http() -> tuple[type[Exception], ...]:
    """What sending a request may raise."""
    import aiohttp

    if find_spec("aiohttp_socks") is None:
        return aiohttp.ClientError, TimeoutError, OSError
    import aiohttp_socks

    of_socks = aiohttp_socks.ProxyError, aiohttp_socks.ProxyConnectionError, aiohttp_socks.ProxyTimeoutError
    return aiohttp.ClientError, TimeoutError, OSError, *of_socks


def not_reached(endpoint: Endpoint, error: Exception) -> Failed:
    """What an error of aiohttp means. Raises UserError where no retry can help.

    endpoint: that was asked.
    error: of aiohttp.
    """
    import aiohttp

    said = " ".join(str(error).split())
    if isinstance(error, aiohttp.ClientResponseError):
        said = f"{error.status} {error.message}"  # the address is in its words
    elif isinstance(error, aiohttp.ClientConnectorError):
        said = error.os_error.strerror or str(error.os_error)
    words = f"{type(error).__name__}: {shortened(said, endpoint.key)}".removesuffix(": ")
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        raise invalid("api.base_url", endpoint.host, "an address such as http://localhost:8000/v1", said) from None
    if "CERTIFICATE_VERIFY_FAILED" in said:
        reason = re.sub(r".*certificate verify failed:\s*|\s*\(_ssl\.c.*", "", said)
        do = f"({reason}) SSL_CERT_FILE=FILE names a file of certificates to trust."
        raise invalid("api.base_url", endpoint.host, "a certificate that this machine trusts", do) from None
    if re.search(r"WRONG_VERSION_NUMBER|UNKNOWN_PROTOCOL|HTTP_REQUEST|RECORD_LAYER|PACKET_LENGTH", said):
        do = "What listens there does not speak https: give http://."
        raise invalid("api.base_url", endpoint.host, "an endpoint that speaks https", do) from None
    if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
        return Failed("timed out", "slow", sent=True)
    if proxy := proxy_for(endpoint):
        words += f", through {proxy[0]}={proxy[1]}"
    not_connected = aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError
    if isinstance(error, not_connected) or "Proxy" in type(error).__name__:
        return Failed(words, "down")
    no_answer = aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, aiohttp.ClientResponseError
    if isinstance(error, no_answer) and endpoint.base.startswith("http:"):
        words += " (does it speak https?)"
    return Failed(words, "broken", sent=True)


def unreachable(endpoint: Endpoint, failure: Failed) -> UserError:
    """Of an endpoint that did not answer, in few tries.

    endpoint: that was asked.
    failure: the last one.
    """
    proxy = proxy_for(endpoint)
    if proxy and failure.kind == "down":
        name = endpoint.host.rpartition(":")[0] or endpoint.host
        do = f"({failure.why.partition(', through')[0]}) NO_PROXY={name} goes past it."
        return invalid(proxy[0], proxy[1], f"a proxy that leads to {endpoint.host}", do)
    expected = "an endpoint that can be reached" if failure.kind == "down" else "an endpoint that answers"
    return invalid("api.base_url", endpoint.host, expected, f"The last of few attempts: {failure.why}.")


def judged(
    endpoint: Endpoint,
    model: Any,
    settings: str,
    status: int,
    content: bytes,
    headers: Mapping[str, str],
    within: bool = False,
) -> tuple[str, str]:
    """('content_filter' or 'too_long', the endpoint's words) of an answer that is none for good, though others may be.

    endpoint: that was asked.
    model: its name.
    settings: names of those that the endpoint may not accept, for messages.
    status: of HTTP, or of the error within a response of status 200.
    content: of the response.
    headers: of the response.
    within: whether the error came with status 200.

    Raises Failed where asking again may help, UserError where it cannot.
    """
    told: Any = None
    with suppress(ValueError):
        told = json.loads(content)
    heard = content.decode("utf-8", "replace") if told is None else _error_in(told) or told
    said = shortened(said_in(heard), endpoint.key)
    kinds = _kinds(told)
    words, answered = f"{kinds} {said}", f"{endpoint.host} answered {'200 with the error ' * within}{status}"
    answered += f": {said}" if said else ", without a reason."
    key_env, no_credit = endpoint.key_env or "null", NO_CREDIT.search(words)
    after = retry_after(headers, content.decode("utf-8", "replace"))
    if status in (400, 403, 422, 451) and (
        FILTERED.search(kinds) or (FILTERED.search(said) and not UNKNOWN.search(said))
    ):
        return "content_filter", said
    if status == 413 or (status in (400, 422, 429) and TOO_LONG.search(words)):
        return "too_long", said
    if status == 402 or (no_credit and (status in (400, 403) or (status == 429 and after is None))):
        raise OutOfCredit(str(invalid("api.api_key_env", key_env, "a key with credit left", answered)))
    if status == 401:
        raise invalid("api.api_key_env", key_env, f"a key that may use the model {model}", answered)
    if status == 407:
        name, value = proxy_for(endpoint) or ("HTTP_PROXY", "")
        raise invalid(name, value, "a proxy that needs no other password", answered)
    if status in (403, 451):
        through = f" (through {proxy[0]}={proxy[1]})" if (proxy := proxy_for(endpoint)) else ""
        raise invalid("api.base_url", endpoint.host, f"an endpoint that allows this request{through}", answered)
    of_the_model = re.search(r"\b(?:model|deployment)|" + re.escape(str(model)), words, re.IGNORECASE)
    if status in (404, 410) and of_the_model:
        raise invalid("api.model", model, "a model of the endpoint, and api.base_url its address", answered)
    if status in (404, 405, 410, 501, 505):
        path = urlsplit(endpoint.base).path
        hint = "" if re.search(r"/v\d|openai", path) else " Most addresses end in /v1."
        raise invalid(
            "api.base_url", _without_password(endpoint.base), "the address of an endpoint", f"{answered}{hint}"
        )
    if 300 <= status < 400:
        to = _without_password(headers.get("location", "")).partition("?")[0]
        do = f"It answered {status}: it is elsewhere{f' ({shortened(to, endpoint.key)})' if to else ''}."
        raise invalid("api.base_url", endpoint.host, "the address itself", do)
    if 400 <= status < 500 and status not in (408, 409, 425, 429):
        raise invalid("api.model", model, f"a model and settings that the endpoint accepts ({settings})", answered)
    raise Failed(f"status {status}" + (f": {said}" if said else ""), "limit" if status == 429 else "broken", after)


def status_of_error(told: Any) -> int | None:
    """Of an error that came with status 200, the status that it should have; None: no error is in it, or an unknown."""
    error = _error_in(told)
    for name in ("code", "status", "status_code", "type"):
        value = error.get(name)
        if re.fullmatch(r"[345]\d\d", str(value)):
            return int(str(value))
        if str(value).lower() in OF_A_KIND:
            return OF_A_KIND[str(value).lower()]
    return None


def said_in(told: Any) -> str:
    """The words in what an endpoint answered, of any of its usual forms: JSON, a web page, plain text."""
    if isinstance(told, str):
        if re.match(r"\s*(?:<!doctype|<html|<head|<\?xml)", told, re.IGNORECASE):
            titles = re.findall(r"<(?:title|h1)\b[^>]*>(.*?)</", told, re.IGNORECASE | re.DOTALL)
            named = dict.fromkeys(" ".join(unescape(re.sub(r"<[^>]*>", " ", title)).split()) for title in titles)
            return "a web page" + (f" ({', '.join(filter(None, named))})" if any(named) else "")
        return told
    if isinstance(told, list):
        return "; ".join(filter(None, map(said_in, told[:3])))
    if isinstance(told, Mapping):
        for name in ("error", "errors", "message", "msg", "detail", "error_description", "fault", "faultstring"):
            if told.get(name) and (words := said_in(told[name])):
                behind = told.get("metadata")  # OpenRouter: what the provider behind it said
                raw = behind.get("raw") if isinstance(behind, Mapping) else None
                return f"{words} ({raw})" if isinstance(raw, str) and raw else str(words)
        if told.keys() & {"message", "error", "detail"}:
            return str(told.get("code") or told.get("type") or "")
        return json.dumps(told, ensure_ascii=False) if told else ""
    return ""


def shortened(said: str, key: str | None) -> str:
    """What an endpoint said, on one line, without the key and what looks like it.

    said: what it said.
    key: None: there is none.
    """
    return without_key(" ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", said).split()), key)[:MOST_WORDS]


def without_key(text: str, key: str | None) -> str:
    """A text with (key) in the key's place, also where it is cut off, quoted for an address, or hidden in part.

    text: what an endpoint, or a library, said.
    key: None: there is none.
    """
    if key:
        for whole in sorted({key, urllib.parse.quote(key), urllib.parse.quote(key, safe="")}, key=len, reverse=True):
            text = text.replace(whole, "(key)")
        if len(key) >= LIKE_THE_KEY:
            ends = (key[:LIKE_THE_KEY], key[-LIKE_THE_KEY:])
            text = re.sub(
                r"[\w.*\u2026-]{6,}", lambda word: "(key)" if any(e in word[0] for e in ends) else word[0], text
            )
    text = re.sub(r"(?i)\b(bearer|basic) [\w.~+/=-]{8,}", r"\1 (key)", text)
    return re.sub(r"\b(?:sk|pk|gsk|xai|hf|nvapi|AIza)[-_][\w*.-]{8,}", "(key)", text)


def proxy_for(endpoint: Endpoint) -> tuple[str, str] | None:
    """(environment variable, its value without a password) of the proxy that leads to it; None: there is none."""
    found = _proxy(endpoint)
    return found and (found[0], _without_password(found[1]))


def _proxy(endpoint: Endpoint) -> tuple[str, str] | None:
    """With the password. An address without a scheme is one of an http proxy."""
    base, proxies = urlsplit(endpoint.base), urllib.request.getproxies()
    host = base.netloc.rpartition("@")[2].lower()
    named = [name.strip().lower() for name in proxies.get("no", "").split(",") if name.strip()]
    if "*" in named or urllib.request.proxy_bypass(host):
        return None
    if any(f".{one}".endswith("." + name.lstrip("*.")) for name in named for one in (host, base.hostname)):
        return None
    for kind in (base.scheme, "all"):
        if value := proxies.get(kind):
            names = (f"{kind}_proxy", f"{kind.upper()}_PROXY")
            variable = next((name for name in names if os.environ.get(name)), names[-1])
            return variable, value if "://" in value else f"http://{value}"
    return None


@cache
def http_library() -> Any:
    """The HTTP library that openai is built on: httpx2, in older versions httpx."""
    import openai

    return importlib.import_module(type(openai.DEFAULT_CONNECTION_LIMITS).__module__.partition(".")[0])


@cache
def _trust(file: str | None, folder: str | None) -> Any:
    """Which certificates are trusted, by the environment; 30 ms, so once for all clients."""
    try:
        return http_library().create_ssl_context()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        name, value = ("SSL_CERT_FILE", file) if file else ("SSL_CERT_DIR", folder)
        expected = "a file of certificates (PEM) that can be read" if file else "a folder of certificates"
        raise invalid(name, value, expected, f"Correct it, or unset it ({type(error).__name__}).") from None


def _without_password(url: str) -> str:
    return re.sub(r"(://)[^/@\s]*@", r"\1", url)


def first_of(told: Any, name: str) -> Mapping[str, Any]:
    """The first of a list in an answer, of choices or images; {}: there is none.

    told: an answer, as JSON.
    name: of the list, "choices" say.
    """
    several = told.get(name) if isinstance(told, Mapping) else None
    first = several[0] if isinstance(several, list) and several else None
    return first if isinstance(first, Mapping) else {}


def _error_in(told: Any) -> Mapping[str, Any]:
    """Of an answer the error, or that of its first choice; {}: none, or a text alone."""
    told = told[0] if isinstance(told, list) and told else told
    if not isinstance(told, Mapping):
        return {}
    inner = told if told.get("object") == "error" else told.get("error")
    for error in (inner, first_of(told, "choices").get("error")):
        if isinstance(error, Mapping) and error:
            return error
    return {}


def _kinds(told: Any) -> str:
    """The codes and types of an error."""
    error = _error_in(told) or (told if isinstance(told, Mapping) else {})
    return " ".join(str(error[name]) for name in ("code", "type", "status", "innererror") if error.get(name))


def retry_after(headers: Mapping[str, str], said: str = "") -> float | None:
    """Seconds, at most LONGEST_RETRY_AFTER, by a header or in words; None: the endpoint does not say.

    headers: of the response.
    said: its content as text.
    """
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        if re.fullmatch(r"\d+(\.\d+)?", after := headers.get(name, "").strip()):
            return min(float(after) / unit, LONGEST_RETRY_AFTER)
        if date := email.utils.parsedate_tz(after):
            return min(max(email.utils.mktime_tz(date) - time.time(), 0.0), LONGEST_RETRY_AFTER)
    in_words = re.search(
        r"(?:try again in|retry in|\"retryDelay\":\s*\")\s*(\d{1,6}(?:\.\d+)?) ?s", said, re.IGNORECASE
    )
    return min(float(in_words[1]), LONGEST_RETRY_AFTER) if in_words else None
