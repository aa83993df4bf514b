"""The certificates of a box: every component has its own identity, exactly as RBAC and NodeRestriction expect.

Three authorities, as kubeadm has them: the cluster's, etcd's (a kubelet's certificate must not open the database) and
the front proxy's. Keys are P-256, written readable by their owner only.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER = ExtendedKeyUsageOID.SERVER_AUTH
API_DNS_NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)

# A box is thrown away; ten years means that no clock on a developer's machine ever ends one.
_LIFETIME = dt.timedelta(days=3650)
# A clock that is set back a little after the certificates were made must not refuse them.
_BACKDATED = dt.timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A private key and the certificate that names it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def certificate_pem(self) -> bytes:
        """The certificate, PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The private key, PKCS#8 PEM, unencrypted."""
        return private_pem(self.key)

    def write(self, folder: Path, stem: str) -> Files:
        """Write `<stem>.crt` and `<stem>.key` (mode 0600) into `folder`."""
        files = Files(folder / f"{stem}.crt", folder / f"{stem}.key")
        files.certificate.write_bytes(self.certificate_pem)
        write_private(files.key, self.key_pem)
        return files


@dataclass(frozen=True, slots=True)
class Files:
    """Where a key pair lies on disk."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority; `now` is the moment its certificates are dated from."""

    pair: KeyPair
    now: dt.datetime

    @classmethod
    def create(cls, common_name: str, now: dt.datetime) -> Authority:
        """A new self-signed authority called `common_name`."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(common_name, ())
        builder = (
            _builder(name, name, key.public_key(), now)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        return cls(KeyPair(builder.sign(key, hashes.SHA256()), key), now)

    def issue(
        self,
        common_name: str,
        *,
        organizations: Sequence[str] = (),
        names: Sequence[str] = (),
        addresses: Sequence[str] = (),
        usage: Iterable[x509.ObjectIdentifier] = (CLIENT,),
    ) -> KeyPair:
        """A leaf certificate: user `common_name`, groups `organizations`; `names` and `addresses` if serving."""
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = self.pair.certificate
        builder = (
            _builder(_name(common_name, organizations), issuer.subject, key.public_key(), self.now)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(list(usage)), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.pair.key.public_key()), critical=False
            )
        )
        alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        alternatives += [x509.IPAddress(ip_address(address)) for address in addresses]
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        return KeyPair(builder.sign(self.pair.key, hashes.SHA256()), key)


def load_pair(certificate_pem: bytes, key_pem: bytes) -> KeyPair:
    """A key pair from what `KeyPair` wrote; raises ValueError for other kinds of keys."""
    key = serialization.load_pem_private_key(key_pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the private key is not an elliptic curve key, so not one of ours")
    return KeyPair(x509.load_pem_x509_certificate(certificate_pem), key)


def _name(common_name: str, organizations: Sequence[str]) -> x509.Name:
    groups = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in organizations]
    return x509.Name([*groups, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: dt.datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - _BACKDATED).not_valid_after(now + _LIFETIME)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as unencrypted PKCS#8 PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write_private(path: Path, content: bytes) -> None:
    """Write `content` so that only the owner could ever read it, not even for an instant."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """What a kubelet needs to speak (client) and to be spoken to (serving)."""

    client: KeyPair
    serving: Files


@dataclass(frozen=True, slots=True)
class ClusterPki:
    """Every identity of a cluster. Clients are held in memory (they go into kubeconfigs), servers as files."""

    ca: Files
    ca_pem: bytes
    etcd_ca: Files
    etcd_server: Files
    etcd_client: Files
    front_proxy_ca: Files
    front_proxy_client: Files
    api_server: Files
    kubelet_client: Files
    service_account_key: Path
    service_account_public: Path
    admin: KeyPair
    controller_manager: KeyPair
    scheduler: KeyPair
    service_proxy: KeyPair
    nodes: dict[str, NodeIdentity] = field(default_factory=dict)


KUBELET_CLIENT_USER = "penstock:kube-apiserver-kubelet-client"


def create_cluster_pki(
    folder: Path, now: dt.datetime, *, api_addresses: Sequence[str], nodes: Sequence[tuple[str, str]] = ()
) -> ClusterPki:
    """Make every key and certificate of a cluster in `folder` (created, mode 0700).

    `api_addresses` are the API server's addresses beside 127.0.0.1; `nodes` are (name, address) pairs.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    cluster = Authority.create("penstock-box", now)
    etcd = Authority.create("penstock-box-etcd", now)
    front = Authority.create("penstock-box-front-proxy", now)
    both = (SERVER, CLIENT)
    local = ("127.0.0.1",)
    etcd_server = etcd.issue("etcd", names=("localhost",), addresses=local, usage=both)
    api = cluster.issue("kube-apiserver", names=API_DNS_NAMES, addresses=(*local, *api_addresses), usage=(SERVER,))
    account = ec.generate_private_key(ec.SECP256R1())
    key_path, public_path = folder / "service-account.key", folder / "service-account.pub"
    write_private(key_path, private_pem(account))
    public_path.write_bytes(
        account.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return ClusterPki(
        ca=cluster.pair.write(folder, "ca"),
        ca_pem=cluster.pair.certificate_pem,
        etcd_ca=etcd.pair.write(folder, "etcd-ca"),
        etcd_server=etcd_server.write(folder, "etcd-server"),
        etcd_client=etcd.issue("kube-apiserver").write(folder, "etcd-client"),
        front_proxy_ca=front.pair.write(folder, "front-proxy-ca"),
        front_proxy_client=front.issue("front-proxy-client").write(folder, "front-proxy-client"),
        api_server=api.write(folder, "kube-apiserver"),
        kubelet_client=cluster.issue(KUBELET_CLIENT_USER).write(folder, "kubelet-client"),
        service_account_key=key_path,
        service_account_public=public_path,
        admin=cluster.issue("penstock-admin", organizations=("system:masters",)),
        controller_manager=cluster.issue("system:kube-controller-manager"),
        scheduler=cluster.issue("system:kube-scheduler"),
        service_proxy=cluster.issue("system:kube-proxy"),
        nodes={name: _node_identity(cluster, folder, name, address) for name, address in nodes},
    )


def _node_identity(cluster: Authority, folder: Path, name: str, address: str) -> NodeIdentity:
    user = f"system:node:{name}"
    serving = cluster.issue(user, organizations=("system:nodes",), names=(name,), addresses=(address,), usage=(SERVER,))
    return NodeIdentity(
        client=cluster.issue(user, organizations=("system:nodes",)),
        serving=serving.write(folder, f"node-{name}"),
    )
