"""A small OpenID Connect provider on authlib's server parts, as a process of its own.

    python tests/support/oidc_provider.py PORT

Everybody who comes is signed in at once, as whoever ``PUT /test`` says: ``claims`` of the person, and what is wrong
with the answer, ``fault``: nonce, audience, issuer, expired, key, none, secret, state or denied.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

CLIENT, SECRET = "guard", "a secret of the client"


class Provider:
    """A provider that runs, and its settings."""

    def __init__(self, issuer: str) -> None:
        self.issuer = issuer

    def says(self, fault: str = "", **claims: Any) -> None:
        """From now on people are these, and answers are wrong in this way."""
        import httpx

        told = {"claims": claims, "fault": fault}
        httpx.put(f"{self.issuer}/test", json=told, verify=False).raise_for_status()


@contextmanager
def running() -> Iterator[Provider]:
    """Start a provider on a free port."""
    import socket

    import httpx

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(Path(__file__)), str(port)], stderr=subprocess.DEVNULL)
    issuer = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                httpx.get(f"{issuer}/.well-known/openid-configuration", verify=False)
                break
            except httpx.HTTPError:
                assert process.poll() is None
                time.sleep(0.05)
        yield Provider(issuer)
    finally:
        process.terminate()
        process.wait(20)


# -- the process -------------------------------------------------------------------------------


def application(issuer: str) -> Any:
    """The provider as an application."""
    from authlib.oauth2.rfc6749 import AuthorizationServer, ClientMixin, OAuth2Request, grants
    from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
    from authlib.oauth2.rfc6750 import BearerTokenGenerator
    from authlib.oauth2.rfc7636 import CodeChallenge
    from authlib.oidc.core.grants import OpenIDCode
    from joserfc import jwt
    from joserfc.jwk import OctKey, RSAKey
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    key, other_key = RSAKey.generate_key(2048, {"kid": "one"}), RSAKey.generate_key(2048, {"kid": "one"})
    told: dict[str, Any] = {"claims": {"sub": "1"}, "fault": ""}
    codes: dict[str, Any] = {}
    tokens: dict[str, dict[str, Any]] = {}

    class Client(ClientMixin):
        def get_client_id(self) -> str:
            return CLIENT

        def get_default_redirect_uri(self) -> None:
            return None

        def get_allowed_scope(self, scope: str) -> str:
            return scope

        def check_redirect_uri(self, redirect_uri: str) -> bool:
            return redirect_uri.endswith("/login/oidc/callback")

        def check_client_secret(self, client_secret: str) -> bool:
            return client_secret == SECRET

        def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
            return method == "client_secret_basic"

        def check_response_type(self, response_type: str) -> bool:
            return response_type == "code"

        def check_grant_type(self, grant_type: str) -> bool:
            return grant_type == "authorization_code"

    class Code(dict[str, Any]):
        """What an authorization code stands for."""

        def __getattr__(self, name: str) -> Any:
            return self[name]

        def get_redirect_uri(self) -> Any:
            return self["redirect_uri"]

        def get_scope(self) -> Any:
            return self["scope"]

        def get_nonce(self) -> Any:
            return self["nonce"]

        def get_auth_time(self) -> int:
            return int(time.time())

        def get_acr(self) -> None:
            return None

        def get_amr(self) -> None:
            return None

    class Grant(grants.AuthorizationCodeGrant):
        TOKEN_ENDPOINT_AUTH_METHODS = ("client_secret_basic",)

        def save_authorization_code(self, code: str, request: Any) -> None:
            data = request.payload.data
            kept = {
                name: data.get(name) for name in ("redirect_uri", "nonce", "code_challenge", "code_challenge_method")
            }
            codes[code] = Code(code=code, scope=request.scope, claims=dict(told["claims"]), **kept)

        def query_authorization_code(self, code: str, client: Any) -> Any:
            return codes.get(code)

        def delete_authorization_code(self, authorization_code: Any) -> None:
            del codes[authorization_code.code]

        def authenticate_user(self, authorization_code: Any) -> Any:
            return authorization_code.claims

    class Open(OpenIDCode):
        def exists_nonce(self, nonce: str, request: Any) -> bool:
            return False

        def encode_id_token(self, token: dict[str, Any], request: Any) -> str:
            now, fault = int(time.time()), told["fault"]
            claims = {
                "iss": issuer,
                "aud": CLIENT,
                "iat": now,
                "exp": now + 300,
                "nonce": request.authorization_code.nonce,
            }
            claims |= {name: value for name, value in request.user.items() if name != "only_in_user_info"}
            claims |= {
                "nonce": {"nonce": "another"},
                "audience": {"aud": "another"},
                "issuer": {"iss": "https://evil.example"},
                "expired": {"exp": now - 3600, "iat": now - 7200},
            }.get(fault, {})
            tokens[token["access_token"]] = dict(request.user)
            if fault == "none":
                return jwt.encode({"alg": "none"}, claims, None, ["none"])
            if fault == "secret":
                return jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(SECRET), ["HS256"])
            return jwt.encode({"alg": "RS256", "kid": "one"}, claims, other_key if fault == "key" else key)

    class Server(AuthorizationServer):
        def query_client(self, client_id: str) -> Any:
            return Client() if client_id == CLIENT else None

        def save_token(self, token: Any, request: Any) -> None:
            return None

        def send_signal(self, name: str, *args: Any, **kwargs: Any) -> None:
            return None

        def create_oauth2_request(self, request: Any) -> Any:
            return request

        def handle_response(self, status: int, body: Any, headers: Any) -> Response:
            made = dict(headers)
            return JSONResponse(body, status, made) if isinstance(body, dict) else Response(body or "", status, made)

    server = Server()
    server.register_token_generator("default", BearerTokenGenerator(lambda **_: secrets.token_urlsafe(24)))
    server.register_grant(Grant, [Open(require_nonce=True), CodeChallenge(required=True)])

    async def parsed(request: Request) -> Any:
        form = dict(parse_qsl((await request.body()).decode()))
        made = OAuth2Request(request.method, str(request.url), headers=dict(request.headers))
        made.payload = BasicOAuth2Payload({**request.query_params, **form})
        type(made).args = property(lambda self: self.payload.data)
        type(made).form = property(lambda self: self.payload.data)
        made.headers = {"Authorization": request.headers.get("authorization", "")}
        return made

    async def authorize(request: Request) -> Response:
        made = await parsed(request)
        if told["fault"] == "denied":
            return Response(status_code=302, headers={"location": f"{made.payload.redirect_uri}?error=access_denied"
                            f"&state={made.payload.state}"})  # fmt: skip
        answer: Response = server.create_authorization_response(made, grant_user=told["claims"])
        if told["fault"] == "state":
            answer.headers["location"] = answer.headers["location"].replace("state=", "state=x")
        return answer

    async def token(request: Request) -> Response:
        made: Response = server.create_token_response(await parsed(request))
        return made

    async def user_info(request: Request) -> Response:
        claims = dict(tokens[request.headers["authorization"].removeprefix("Bearer ")])
        return JSONResponse({**claims, **claims.pop("only_in_user_info", {})})

    async def tell(request: Request) -> Response:
        told.update(await request.json())
        return JSONResponse({})

    metadata = {
        "issuer": issuer,
        "authorization_endpoint": f"{issuer}/authorize",
        "token_endpoint": f"{issuer}/token",
        "jwks_uri": f"{issuer}/keys",
        "userinfo_endpoint": f"{issuer}/me",
    }
    return Starlette(
        routes=[
            Route("/.well-known/openid-configuration", lambda _: JSONResponse(metadata)),
            Route("/keys", lambda _: JSONResponse({"keys": [key.as_dict(private=False)]})),
            Route("/authorize", authorize),
            Route("/token", token, methods=["POST"]),
            Route("/me", user_info),
            Route("/test", tell, methods=["PUT"]),
        ]
    )


if __name__ == "__main__":
    import os

    import uvicorn

    os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"  # on this machine there is no TLS
    PORT = int(sys.argv[1])
    uvicorn.run(application(f"http://127.0.0.1:{PORT}"), port=PORT, log_level="error")
