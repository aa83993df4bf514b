"""Certificates: the right identity, the right names, and nobody else's authority is enough."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from penstock.box.kubeconfig import write_kubeconfig
from penstock.box.pki import SERVER, Authority, KeyPair, create_cluster_pki, load_pair
from penstock.box.ready import api_answers, client_context, kubeconfig_identity

NOW = dt.datetime(2030, 1, 2, tzinfo=dt.UTC)


def _names(certificate: x509.Certificate) -> tuple[list[str], list[str]]:
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = [str(address) for address in extension.get_values_for_type(x509.IPAddress)]
    return extension.get_values_for_type(x509.DNSName), addresses


def _subject(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> list[str]:
    return [str(attribute.value) for attribute in certificate.subject.get_attributes_for_oid(oid)]


def test_the_api_server_is_reached_by_every_name_clients_use(tmp_path: Path) -> None:
    pki = create_cluster_pki(tmp_path, NOW, api_addresses=("10.96.0.1",))
    names, addresses = _names(x509.load_pem_x509_certificate(pki.api_server.certificate.read_bytes()))
    assert {"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"} <= set(names)
    assert "kubernetes.default.svc.cluster.local" in names
    assert addresses == ["127.0.0.1", "10.96.0.1"]


def test_a_kubelet_is_the_user_and_group_that_node_restriction_expects(tmp_path: Path) -> None:
    pki = create_cluster_pki(tmp_path, NOW, api_addresses=(), nodes=[("n-0", "10.89.0.10")])
    client = pki.nodes["n-0"].client.certificate
    assert _subject(client, NameOID.COMMON_NAME) == ["system:node:n-0"]
    assert _subject(client, NameOID.ORGANIZATION_NAME) == ["system:nodes"]
    serving = x509.load_pem_x509_certificate(pki.nodes["n-0"].serving.certificate.read_bytes())
    assert _names(serving) == (["n-0"], ["10.89.0.10"])
    usage = serving.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_private_keys_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    create_cluster_pki(tmp_path, NOW, api_addresses=(), nodes=[("n-0", "10.89.0.10")])
    keys = list(tmp_path.glob("*.key"))
    assert len(keys) >= 8
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}


def test_a_clusters_authority_does_not_open_the_database(tmp_path: Path) -> None:
    pki = create_cluster_pki(tmp_path, NOW, api_addresses=())
    etcd = x509.load_pem_x509_certificate(pki.etcd_ca.certificate.read_bytes())
    with pytest.raises(ValueError, match="Issuer"):
        pki.admin.certificate.verify_directly_issued_by(etcd)


def test_validity_starts_before_now_and_lasts_years() -> None:
    certificate = Authority.create("ca", NOW).pair.certificate
    assert certificate.not_valid_before_utc < NOW
    assert certificate.not_valid_after_utc > NOW + dt.timedelta(days=3000)


def test_a_kubeconfig_gives_back_what_it_was_made_of(tmp_path: Path) -> None:
    authority = Authority.create("ca", NOW)
    user = authority.issue("someone", organizations=("a", "b"))
    path = write_kubeconfig(tmp_path / "k", "https://127.0.0.1:1", authority.pair.certificate_pem, user)
    ca, identity = kubeconfig_identity(path)
    assert ca == authority.pair.certificate_pem
    assert identity.certificate == user.certificate
    assert identity.key_pem == user.key_pem
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert yaml.safe_load(path.read_text())["current-context"] == "penstock"


def test_a_key_of_another_kind_is_refused() -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    pem = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(ValueError, match="elliptic"):
        load_pair(Authority.create("ca", NOW).pair.certificate_pem, pem)


def _serve_once(pair: KeyPair, ca_pem: bytes, folder: Path) -> int:
    files = pair.write(folder, "server")
    (folder / "ca.crt").write_bytes(ca_pem)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "ca.crt"))
    context.load_cert_chain(files.certificate, files.key)
    context.verify_mode = ssl.CERT_REQUIRED
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener:
            connection, _ = listener.accept()
            try:
                with context.wrap_socket(connection, server_side=True) as secure:
                    secure.recv(4096)
                    secure.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            except OSError:
                connection.close()

    threading.Thread(target=serve, daemon=True).start()
    port: int = listener.getsockname()[1]
    return port


@pytest.mark.parametrize("trusted", [True, False])
def test_a_client_is_answered_only_by_a_server_of_its_authority(tmp_path: Path, trusted: bool) -> None:
    now = dt.datetime.now(dt.UTC)
    ours, other = Authority.create("ca", now), Authority.create("ca", now)
    server = ours.issue("server", addresses=("127.0.0.1",), usage=(SERVER,))
    port = _serve_once(server, ours.pair.certificate_pem, tmp_path)
    authority = ours if trusted else other
    context = client_context(authority.pair.certificate_pem, ours.issue("client"))
    assert api_answers("127.0.0.1", port, context) is trusted
