"""Signing in with an OpenID Connect provider: the authorization code flow with PKCE, state and nonce.

guard trusts only an ID token that the provider has signed for this client and this login. Roles come from one of its
claims; a person without a known value cannot sign in.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import secrets
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from guard.access.records import Grant, parse_grants
from guard.errors import AccessError, InputError, missing_extra

#: Signatures of ID tokens that are accepted: none that a client's secret could make, and not "none".
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")

#: Seconds in which a login must come back, for which the provider's metadata are kept, of a request, of clocks.
LOGIN_S, METADATA_S, TIMEOUT_S, LEEWAY_S = 600, 3600.0, 10.0, 60

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class OidcSettings:
    """An OpenID Connect provider, and the roles of its users.

    Attributes:
        issuer: URL of the provider, spelled as the provider spells it; HTTPS, or on this machine.
        client_id: the id under which guard is registered there.
        client_secret: None for a public client.
        roles: grants by value of the claim.
        claim: claim that contains these values, such as ``groups``; looked up in the ID token, then in the user info.

    Raises:
        InputError: the issuer is no HTTPS URL, or no value has a role.

    Examples:
        >>> roles = {"guard-reviewers": (Grant.parse("reviewer"),)}
        >>> OidcSettings("https://id.example.org", "guard", None, roles).claim
        'groups'
    """

    issuer: str
    client_id: str
    client_secret: str | None = field(repr=False)
    roles: Mapping[str, tuple[Grant, ...]]
    claim: str = "groups"

    def __post_init__(self) -> None:
        parts = urlsplit(self.issuer)
        secure = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
        if not secure or not parts.hostname or parts.query or parts.fragment:
            raise InputError(
                f"'{self.issuer[:80]}' cannot be an OpenID Connect issuer",
                why="it must be an https:// URL",
                fix="Write --oidc-issuer https://id.example.org",
            )
        if not self.client_id or not self.roles:
            raise InputError("OpenID Connect needs a client and roles", fix="Give --oidc-client and --oidc-role")

    def grants(self, values: Any) -> tuple[Grant, ...]:
        """Return the grants of a claim's values, a text or a list; unknown ones give nothing.

        Examples:
            >>> settings = OidcSettings("https://id.example.org", "guard", None, {"staff": (Grant.parse("viewer"),)})
            >>> settings.grants(["staff", "other"]), settings.grants("nobody")
            ((Grant(role=<Role.VIEWER: 'viewer'>, route=None),), ())
        """
        given = [values] if isinstance(values, str) else values if isinstance(values, list) else []
        texts = {str(grant) for value in given if isinstance(value, str) for grant in self.roles.get(value, ())}
        return parse_grants(texts) if texts else ()


@dataclass(frozen=True, slots=True)
class PendingLogin:
    """A login in progress at the provider, stored only in the browser's cookie.

    Attributes:
        state: value that must come back, which shows that the answer belongs to this browser's request.
        nonce: value that the ID token must contain, which shows that it was issued for this login.
        verifier: secret that shows the provider that the same client asked for the code and redeems it (PKCE).
        then: page to open after the login.
    """

    state: str
    nonce: str
    verifier: str
    then: str

    @classmethod
    def new(cls, then: str) -> PendingLogin:
        """Return a login with fresh secrets."""
        return cls(secrets.token_urlsafe(48), secrets.token_urlsafe(48), secrets.token_urlsafe(48), then)

    def to_cookie(self) -> str:
        """Return the login as text for a cookie."""
        values = [self.state, self.nonce, self.verifier, self.then]
        return base64.urlsafe_b64encode(json.dumps(values).encode()).decode()

    @classmethod
    def from_cookie(cls, text: str) -> PendingLogin | None:
        """Return the login in a cookie; None if it contains none.

        Examples:
            >>> login = PendingLogin.new("/queue")
            >>> PendingLogin.from_cookie(login.to_cookie()) == login, PendingLogin.from_cookie("x")
            (True, None)
        """
        try:
            values = json.loads(base64.urlsafe_b64decode(text.encode("ascii")))
        except (ValueError, binascii.Error, RecursionError):
            return None
        right = isinstance(values, list) and len(values) == 4 and all(isinstance(each, str) and each for each in values)
        return cls(*values) if right else None


@dataclass(frozen=True, slots=True)
class OidcIdentity:
    """A person who has signed in at a provider.

    Attributes:
        subject: permanent name of the person: the issuer, and the provider's id of the person.
        login: login name to use in guard.
        name: display name.
        grants: at least one.
    """

    subject: str
    login: str
    name: str
    grants: tuple[Grant, ...]


class OidcClient:
    """Guard as a client of one provider. Safe under threads.

    Attributes:
        settings: of the provider.
    """

    def __init__(self, settings: OidcSettings) -> None:
        """
        Raises:
            MissingExtraError: authlib or httpx is not installed.
        """
        _authlib()
        self.settings = settings
        self._tls = ssl.create_default_context()
        self._lock = threading.Lock()
        self._metadata: tuple[float, dict[str, Any]] | None = None

    def begin(self, login: PendingLogin, redirect_uri: str) -> str:
        """Return the provider's address for a login.

        Args:
            login: login in progress, which the browser keeps.
            redirect_uri: address to which the provider sends the browser back.

        Raises:
            AccessError: the provider does not answer, or its answer is malformed.
        """
        with self._session(redirect_uri) as session:
            url, _ = session.create_authorization_url(
                self._endpoint("authorization_endpoint"),
                state=login.state,
                nonce=login.nonce,
                code_verifier=login.verifier,
            )
        return str(url)

    def finish(self, login: PendingLogin, answer: Mapping[str, str], redirect_uri: str) -> OidcIdentity:
        """Return the person who has signed in.

        Args:
            login: from the browser's cookie.
            answer: parameters that the provider has put into the address.
            redirect_uri: as for `begin`.

        Raises:
            AccessError: the answer does not belong to this login, the provider refused, its token is invalid,
                or none of the person's values has a role.
        """
        if not hmac.compare_digest(login.state.encode(), answer.get("state", "").encode()):
            raise AccessError("This sign-in was not begun here", fix="Begin again")
        metadata = self._read_metadata()
        if answer.get("iss", self.settings.issuer) != self.settings.issuer or (
            metadata.get("authorization_response_iss_parameter_supported") and "iss" not in answer
        ):
            raise AccessError("The sign-in comes from another provider", fix="Begin again")
        if "code" not in answer:
            raise AccessError("The provider did not sign you in", why=answer.get("error", "it gave no code")[:80])
        claims, token = self._redeem(login, answer["code"], redirect_uri)
        return self._identity(claims, token)

    # -- the provider --------------------------------------------------------------------------

    def _session(self, redirect_uri: str | None = None) -> Any:
        settings = self.settings
        return _authlib().OAuth2Client(
            settings.client_id,
            settings.client_secret,
            scope="openid profile email",
            redirect_uri=redirect_uri,
            code_challenge_method="S256",
            token_endpoint_auth_method="client_secret_basic" if settings.client_secret else "none",
            timeout=TIMEOUT_S,
            verify=self._tls,
        )

    def _read_metadata(self) -> dict[str, Any]:
        with self._lock:
            known = self._metadata
        if known is not None and known[0] > time.monotonic():
            return known[1]
        found = self._json(self.settings.issuer.rstrip("/") + "/.well-known/openid-configuration")
        if found.get("issuer") != self.settings.issuer:
            raise AccessError(
                "The provider is not the one that was configured",
                why=f"it calls itself '{str(found.get('issuer'))[:80]}'",
                fix="Give that issuer with --oidc-issuer, if it is the right one",
            )
        with self._lock:
            self._metadata = (time.monotonic() + METADATA_S, found)
        return found

    def _json(self, url: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        import httpx

        try:
            answer = httpx.get(url, headers=dict(headers or {}), timeout=TIMEOUT_S, verify=self._tls)
            found = answer.raise_for_status().json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise AccessError("The provider cannot be reached", why=f"{type(error).__name__} at {url[:120]}") from error
        if not isinstance(found, dict):
            raise AccessError("The provider does not answer as one", why=f"no JSON object at {url[:120]}")
        return found

    def _endpoint(self, name: str) -> str:
        url = self._read_metadata().get(name)
        if not isinstance(url, str) or urlsplit(url).scheme not in ("https", urlsplit(self.settings.issuer).scheme):
            raise AccessError(f"The provider has no {name} that can be used")
        return url

    def _redeem(self, login: PendingLogin, code: str, redirect_uri: str) -> tuple[dict[str, Any], str]:
        """Return the checked claims of the ID token, and the access token."""
        url = self._endpoint("token_endpoint")
        with self._session(redirect_uri) as session:
            try:
                token = session.fetch_token(url, code=code, code_verifier=login.verifier)
            except Exception as error:
                raise AccessError("The provider did not redeem the sign-in", why=type(error).__name__) from error
        access_token = str(token.get("access_token", ""))
        return self._checked(str(token.get("id_token", "")), login.nonce, access_token), access_token

    def _checked(self, id_token: str, nonce: str, access_token: str) -> dict[str, Any]:
        """Return the claims of an ID token whose signature, issuer, audience, times and nonce are right."""
        from authlib.oidc.core import CodeIDToken
        from joserfc import jwt
        from joserfc.errors import JoseError
        from joserfc.jwk import KeySet

        keys = self._json(self._endpoint("jwks_uri"))
        options: Any = {
            "iss": {"essential": True, "value": self.settings.issuer},
            "aud": {"essential": True, "value": self.settings.client_id},
        }
        try:
            decoded = jwt.decode(id_token, KeySet.import_key_set(keys), algorithms=ALGORITHMS)  # type: ignore[arg-type]
            parameters = {"nonce": nonce, "client_id": self.settings.client_id, "access_token": access_token}
            claims = CodeIDToken(decoded.claims, decoded.header, options, parameters)
            claims.validate(leeway=LEEWAY_S)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            why = f"{type(error).__name__} {getattr(error, 'claim', '')}".strip()
            raise AccessError("The provider's token is not valid", why=why) from error
        return dict(claims)

    def _identity(self, claims: dict[str, Any], access_token: str) -> OidcIdentity:
        settings = self.settings
        if settings.claim not in claims and "userinfo_endpoint" in self._read_metadata():
            claims = {**self._user_info(claims["sub"], access_token), **claims}
        grants = settings.grants(claims.get(settings.claim))
        if not grants:
            raise AccessError(
                "You have no role here", why=f"none of your {settings.claim} is known", fix="Ask an admin for a role"
            )
        login = str(claims.get("preferred_username") or claims.get("email") or claims["sub"])
        name = str(claims.get("name") or login)
        return OidcIdentity(f"{settings.issuer} {claims['sub']}", login, name, grants)

    def _user_info(self, subject: str, access_token: str) -> dict[str, Any]:
        found = self._json(self._endpoint("userinfo_endpoint"), {"authorization": f"Bearer {access_token}"})
        if found.get("sub") != subject:
            raise AccessError("The provider's user info is of somebody else")
        return found


def _authlib() -> Any:
    try:
        import authlib.integrations.httpx_client as found
    except ImportError:
        raise missing_extra("authlib", "oidc") from None
    return found
