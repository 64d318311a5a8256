#!/usr/bin/env python3
"""Verifies proof bundles of Immutable, and the test vectors, by docs/design/ledger-spec.md alone. Standard library only.

verify.py vectors DIR              schemas/testdata/vectors
verify.py bundle FILE --trust FILE a proof bundle; prints its verdicts, exits with 1 where there is one but REDACTED
"""
import base64, datetime, hashlib, json, math, pathlib, re, sys

ZERO = bytes(32)
def sha(*parts): return hashlib.sha256(b"".join(parts)).digest()
def be(n, size): return n.to_bytes(size, "big", signed=n < 0)

# Ed25519, RFC 8032, section 5.1.7.
P, Q = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P

def add(a, b):
    x, y = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    u, v = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    e, f, g, h = y - x, v - u, v + u, y + x
    return e * f % P, g * h % P, f * g % P, e * h % P

def times(n, a):
    r = (0, 1, 1, 0)
    while n:
        if n & 1: r = add(r, a)
        a, n = add(a, a), n >> 1
    return r

def point(b):
    y, sign = int.from_bytes(b, "little") & 2**255 - 1, b[31] >> 7
    x2 = (y * y - 1) * pow(D * y * y + 1, -1, P) % P; x = pow(x2, (P + 3) // 8, P)
    if (x * x - x2) % P: x = x * pow(2, (P - 1) // 4, P) % P
    if y >= P or (x * x - x2) % P or (x == 0 and sign): raise ValueError("not a point")
    if x & 1 != sign: x = P - x
    return x, y, 1, x * y % P

BASE = point(be(4 * pow(5, -1, P) % P, 32)[::-1])

def ed25519(public, message, signature):
    if len(public) != 32 or len(signature) != 64: return False
    try: a, r = point(public), point(signature[:32])
    except ValueError: return False
    s = int.from_bytes(signature[32:], "little")
    h = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % Q
    x, y = times(s, BASE), add(r, times(h, a))
    return s < Q and (x[0] * y[2] - y[0] * x[2]) % P == 0 and (x[1] * y[2] - y[1] * x[2]) % P == 0

# Canonical JSON, RFC 8785.
def number(f):
    if f == 0: return "0"
    if math.isinf(f) or math.isnan(f): raise ValueError("not a double")
    digits, exponent = re.fullmatch(r"-?(\d(?:\.\d+)?)e([+-]\d+)", "%.*e" % (significant(f) - 1, f)).groups()
    digits, exponent, sign = digits.replace(".", ""), int(exponent), "-" if f < 0 else ""
    if 0 <= exponent < 21:
        whole = digits[:exponent + 1].ljust(exponent + 1, "0")
        return sign + whole + ("." + digits[exponent + 1:] if digits[exponent + 1:] else "")
    if -7 < exponent < 0: return sign + "0." + "0" * (-exponent - 1) + digits
    return sign + digits[0] + ("." + digits[1:] if digits[1:] else "") + "e%+d" % exponent
def significant(f): return next(n for n in range(1, 18) if float("%.*e" % (n - 1, f)) == f)

def text(s): return s.encode() and json.dumps(s, ensure_ascii=False) or '""'  # lone surrogates raise

def canonical(v):
    if isinstance(v, dict):
        return "{" + ",".join(text(k) + ":" + canonical(v[k]) for k in sorted(v, key=lambda k: k.encode("utf-16-be"))) + "}"
    if isinstance(v, list): return "[" + ",".join(map(canonical, v)) + "]"
    if isinstance(v, str): return text(v)
    if isinstance(v, (float, int)) and not isinstance(v, bool): return number(float(v))
    return json.dumps(v)

def read(source):
    """The value of canonical JSON; ValueError where it is not."""
    def unique(pairs):
        if len(dict(pairs)) < len(pairs): raise ValueError("a name twice")
        return dict(pairs)
    v = json.loads(source, object_pairs_hook=unique, parse_int=float)
    if canonical(v) != source: raise ValueError("not canonical")
    return v

def fields(body):
    v, escape = read(body), lambda k: k.replace("~", "~0").replace("/", "~1")
    if not isinstance(v, dict) or v.get("metadata") == {}: raise ValueError("not an object, or an empty metadata")
    meta = v.pop("metadata") if isinstance(v.get("metadata"), dict) else {}
    all = [("/" + escape(k), x) for k, x in v.items()] + [("/metadata/" + escape(k), x) for k, x in meta.items()]
    return sorted((path.encode(), canonical(x).encode()) for path, x in all)
def salt(seed, path): return sha(seed, path)[:16]
def commitment(salt, path, value): return sha(b"\x01", salt, be(len(path), 2), path, value)
def body_root(cs): return sha(b"immutable/body/1\x00", be(len(cs), 2), *cs)
def seeded(seed, fs): return [commitment(salt(seed, p), p, v) for p, v in fs]

# Trees.
def node(left, right): return sha(b"\x01", left, right)

def inclusion(leaf, index, size, path, root):  # RFC 9162, section 2.1.3.2
    if index >= size: return False
    f, s, r = index, size - 1, leaf
    for p in path:
        if s == 0: return False
        if f & 1 or f == s:
            r = node(p, r)
            while f and not f & 1: f, s = f >> 1, s >> 1
        else: r = node(r, p)
        f, s = f >> 1, s >> 1
    return s == 0 and r == root
def consistency(size1, size2, path, root1, root2):  # RFC 9162, section 2.1.4.2
    if size1 == size2: return not path and root1 == root2
    if not 0 < size1 < size2: return False
    path = [root1] + path if size1 & (size1 - 1) == 0 else list(path)
    f, s = size1 - 1, size2 - 1
    while f & 1: f, s = f >> 1, s >> 1
    if not path: return False
    r1 = r2 = path[0]
    for p in path[1:]:
        if s == 0: return False
        if f & 1 or f == s:
            r1, r2 = node(p, r1), node(p, r2)
            while f and not f & 1: f, s = f >> 1, s >> 1
        else: r2 = node(r2, p)
        f, s = f >> 1, s >> 1
    return s == 0 and r1 == root1 and r2 == root2
def map_leaf(key, value): return sha(b"\x00", key, value)
def in_map(chain, place, proof, root):
    key, siblings = sha(chain), [bytes.fromhex(h) for h in proof.get("siblings") or []]
    n, hash = len(siblings), place
    for i, sibling in enumerate(siblings):
        bit = int.from_bytes(key, "big") >> (255 - (n - 1 - i)) & 1
        hash = node(sibling, hash) if bit else node(hash, sibling)
    return n <= 256 and hash == root
def present(chain, size, chain_root, proof, root):
    return not proof.get("other") and in_map(chain, map_leaf(sha(chain), sha(be(size, 8), chain_root)), proof, root)
def absent(chain, proof, root):
    other, n = proof.get("other"), len(proof.get("siblings") or [])
    if not other: return in_map(chain, ZERO, proof, root)
    key, value = bytes.fromhex(other["key"]), bytes.fromhex(other["value"])
    same = n == 0 or int.from_bytes(key, "big") >> (256 - n) == int.from_bytes(sha(chain), "big") >> (256 - n)
    return key != sha(chain) and same and in_map(chain, map_leaf(key, value), proof, root)

# Leaves.
def leaf_bytes(l):
    return b"".join([b"immutable/leaf/1\x00", l["chain"], be(l["sequence"], 8), l["previous"], be(l["kind"], 1), l["id"],
                     l["recorded_at"].to_bytes(8, "big", signed=True), be(l["generation"], 2), be(l["partition"], 2),
                     be(l["offset"], 8), be(l["field_count"], 2), l["body_root"]])
def chain_id(workspace, incarnation, lane): return sha(b"immutable/chain/1\x00", workspace, incarnation, be(lane, 4))[:16]

def micros(s):
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", s): raise ValueError("time")
    d = datetime.datetime.fromisoformat(s[:-1] + "+00:00") - datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    return (d.days * 86400 + d.seconds) * 10**6 + d.microseconds

# Notes, C2SP signed-note and tlog-cosignature.
class Key:
    def __init__(self, vkey):
        self.name, hash, material = vkey.split("+", 2)
        material = base64.b64decode(material, validate=True)
        self.kind, self.public, self.hash = material[0], material[1:], bytes.fromhex(hash)
        if sha(self.name.encode(), b"\n", material)[:4] != self.hash: raise ValueError("hash of " + vkey)

    def verify(self, body, signature, now):
        if self.kind == 1: return ed25519(self.public, body, signature)
        at = int.from_bytes(signature[:8], "big")
        return ed25519(self.public, b"cosignature/v1\ntime %d\n" % at + body, signature[8:]) and 0 < at <= now + 300

def signed_by(note, keys, now=math.inf):
    """The keys whose signatures are on a note; None where one is wrong."""
    body, _, lines = note.rpartition("\n\n")
    body, found = (body + "\n").encode(), []
    for line in lines.splitlines():
        _, name, b64 = line.split(" ")
        raw = base64.b64decode(b64, validate=True)
        for k in keys:
            if (k.name, k.hash) != (name, raw[:4]): continue
            if k.verify(body, raw[4:], now): found.append(k)
            elif k.verify(body, raw[4:], math.inf): continue  # of the future
            else: return None
    return found
def policy(trust):
    logs, named, quorum = [], {}, (0, [])
    for words in filter(None, (line.split() for line in trust.splitlines() if not line.lstrip().startswith("#"))):
        if words[0] == "log": logs.append(Key(words[1]))
        elif words[0] == "witness": named[words[1]] = Key(words[2])
        elif words[0] == "group":
            members = [named[w] for w in words[3:]]
            named[words[1]] = ({"any": 1, "all": len(members)}.get(words[2]) or int(words[2]), members)
        elif words[0] == "quorum": quorum = (0, []) if words[1] == "none" else (1, [named[words[1]]])
        else: logs.append(Key(words[0]))
    return logs, [k for k in named.values() if isinstance(k, Key)], quorum
def met(group, found):
    return group in found if isinstance(group, Key) else sum(met(m, found) for m in group[1]) >= group[0]
def entry_hash(e): return sha(b"\x00", e.encode())

def check_log(b, trust, now):
    """Verdicts of steps 1 to 3 of the specification."""
    logs, witnesses, quorum = policy(trust)
    head, _, note = b["log_proof"].partition("\n\n")
    lines, (origin, size, root) = head.split("\n"), note.split("\n")[:3]
    if lines[0] != "c2sp.org/tlog-proof@v1" or note.partition("\n\n")[0].count("\n") != 2: return ["INVALID PROOF"]
    size, root, history = int(size), base64.b64decode(root, validate=True), []
    for k in b["keys"]:
        e = read(k["entry"])
        key, index = Key(e["key"]), int(e["index"])
        by = history[-1][0] if history else key
        want = "immutable/key/1\n%s\n%d\n%s\n" % (origin, index, e["key"])
        if not inclusion(entry_hash(k["entry"]), index, size, [bytes.fromhex(h) for h in k["path"] or []], root) or \
                (index > history[-1][1] if history else index == 0) is False or key.name != origin or \
                not e["signature"].startswith(want + "\n") or not signed_by(e["signature"], [by]):
            return ["INVALID PROOF"]
        history.append((key, index))
    verdicts, believed = [], [k for k in logs if k.name == origin]
    first = next((i for i, (k, _) in enumerate(history) if k.public in [b.public for b in believed]), len(history))
    believed += [k for k, _ in history[first:] if k.public not in [b.public for b in believed]]
    found = signed_by(note, believed + witnesses, now)
    until = [index for _, index in history[1:]] + [math.inf]
    in_range = [k for k in found or [] for (h, index), end in zip(history, until) if h.public == k.public and index < size <= end]
    if not found or not [k for k in found if k in believed]: verdicts.append("WRONG KEY")
    elif not in_range: verdicts.append("KEY OUT OF RANGE")
    elif not met(quorum, found): verdicts.append("QUORUM NOT MET")
    path = [base64.b64decode(h, validate=True) for h in lines[2:]]
    if not inclusion(entry_hash(b["epoch"]), int(lines[1].removeprefix("index ")), size, path, root):
        return verdicts + ["INVALID PROOF"]
    return verdicts

def check_leaf(b, l):
    """Verdicts of step 4."""
    verdicts, raw = [], {k: bytes.fromhex(l[k]) for k in ("chain", "previous", "body_root", "workspace", "incarnation")}
    raw |= {k: l[k] for k in ("sequence", "kind", "generation", "partition", "offset", "field_count")} | {"id": bytes.fromhex(l["id"].replace("-", "")), "recorded_at": micros(l["recorded_at"])}
    if chain_id(raw["workspace"], raw["incarnation"], l["lane"]) != raw["chain"] or l["chain"] != b["chain"]:
        verdicts.append("CROSS-CHAIN")
    path = [bytes.fromhex(h) for h in l["path"] or []]
    if not inclusion(sha(b"\x00", leaf_bytes(raw)), l["sequence"], b["size"], path, bytes.fromhex(b["root"])):
        verdicts.append("MODIFIED")
    try:
        if "disclosure" in l:
            cs = [bytes.fromhex(d["commitment"]) if "commitment" in d else
                  commitment(bytes.fromhex(d["salt"]), d["path"].encode(), canonical(read(d["value"])).encode()) for d in l["disclosure"]]
        else: cs = seeded(bytes.fromhex(l["seed"]), fields(l["body"]))
    except ValueError: return verdicts + ["NON-CANONICAL"]
    if body_root(cs) != raw["body_root"] or len(cs) != l["field_count"]: verdicts.append("MODIFIED")
    return verdicts

def check_bundle(b, trust, now):
    verdicts, epoch = check_log(b, trust, now), read(b["epoch"])
    if micros(b["recorded_at"]) > micros(epoch["time"]) + 300 * 10**6: verdicts.append("TIME ANOMALY")
    if epoch["type"] != "epoch" or not present(bytes.fromhex(b["chain"]), b["size"], bytes.fromhex(b["root"]), b["map"],
                                               bytes.fromhex(epoch["map_root"])): verdicts.append("INVALID PROOF")
    verdicts, covered = verdicts + check_leaf(b, b), []
    for r in b.get("redactions", []):
        said = check_leaf(b, r)
        meta = read(r["body"]).get("metadata", {}) if not said and r["kind"] == 3 else {}
        if meta.get("event_id") == b["id"] and r["sequence"] > b["sequence"]: covered += {*meta["paths"]} - {"/action", "/occurred_at", "/version"}
        else: said = said or ["WITHHELD"]
        verdicts += said
    withheld = [d["path"] for d in b.get("disclosure", []) if "commitment" in d]
    return verdicts + ["REDACTED" if p in covered else "WITHHELD" for p in withheld]

def check_vectors(folder):
    load, n = lambda name: json.loads((folder / name).read_text()), 0
    def expect(ok, what):
        nonlocal n
        n = n + 1 if ok else sys.exit("%s does not hold" % what)
    for l in load("leaves.json")["leaves"]:
        raw = {k: bytes.fromhex(l[k]) for k in ("chain", "previous", "id", "body_root")}
        raw |= {k: int(l[k]) for k in ("sequence", "kind", "recorded_at", "generation", "partition", "offset", "field_count")}
        expect(leaf_bytes(raw).hex() == l["want_leaf"] and sha(b"\x00", leaf_bytes(raw)).hex() == l["want_hash"], "leaf " + l["name"])
    for e in load("events.json")["accepted"]:
        fs = fields(e["want"]["body"])
        expect(body_root(seeded(bytes.fromhex(e["seed"]), fs)).hex() == e["want"]["body_root"], "body root of " + e["name"])
    for r in load("redactions.json")["redactions"]:
        left, stored, enc = dict(fields(r["want_left"])), json.loads(r["want_disclosure"]), lambda d: d["path"].encode()
        cs = [bytes.fromhex(d["commitment"]) if "commitment" in d else
              commitment(bytes.fromhex(d["salt"]), enc(d), left.pop(enc(d))) for d in stored]
        ok = not left and [d["path"] for d in stored if "commitment" in d] == sorted(r["paths"], key=str.encode)
        expect(ok and cs == seeded(bytes.fromhex(r["seed"]), fields(r["body"])) and body_root(cs).hex() == r["want_body_root"], "redaction " + r["name"])
    h, proofs, m, log = bytes.fromhex, load("proofs.json"), load("map.json"), load("log.json")
    for p in proofs["inclusion"]:
        expect(inclusion(h(p["leaf"]), p["index"], p["size"], [h(x) for x in p["path"] or []], h(p["root"])), "inclusion %s" % p["index"])
    for p in proofs["consistency"]:
        expect(consistency(p["size1"], p["size2"], [h(x) for x in p["path"] or []], h(p["root1"]), h(p["root2"])), "consistency %s" % p["size1"])
    for c in m["present"]: expect(present(h(c["chain"]), c["size"], h(c["root"]), c["proof"], h(m["root"])), "present " + c["chain"])
    for c in m["absent"]: expect(absent(h(c["chain"]), c["proof"], h(m["root"])), "absent " + c["chain"])
    expect([entry_hash(e).hex() for e in log["entries"]] == log["entry_hashes"], "the entries' hashes")
    keys = [Key(read(e)["key"]) for e in log["entries"] if read(e)["type"] == "key"]
    one, two = ((note.split("\n")[:3], signed_by(note, keys)) for note in log["fork"])
    expect(one[0][:2] == two[0][:2] and one[0][2] != two[0][2] and one[1] and two[1], "the fork")
    now = datetime.datetime.fromisoformat(log["now"].replace("Z", "+00:00")).timestamp()
    for v in log["bundles"]:
        got = check_bundle(json.loads(v["bundle"]), v["trust"], now)
        expect(got == v["want"], "bundle %r: %s, want %s" % (v["name"], got, v["want"]))
    print("%d vectors hold" % n)

if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "vectors": check_vectors(pathlib.Path(sys.argv[2]))
    elif len(sys.argv) == 5 and sys.argv[1] == "bundle" and sys.argv[3] == "--trust":
        now = datetime.datetime.now(datetime.timezone.utc).timestamp()
        verdicts = check_bundle(json.loads(pathlib.Path(sys.argv[2]).read_text()), pathlib.Path(sys.argv[4]).read_text(), now)
        print("\n".join(verdicts) or "VERIFIED")
        sys.exit(any(v != "REDACTED" for v in verdicts))
    else: sys.exit(__doc__)
