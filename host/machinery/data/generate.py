#!/usr/bin/env python3
"""Writes types.tsv, messages.tsv, resources.tsv and descriptions.z from facts about the Kubernetes API.

usage: generate.py FACTS GO CRATE OUT

FACTS holds types.json, protobuf.json and resources.tsv, condensed from the published OpenAPI v3 and
discovery documents and protobuf field tables. GO holds k8s.io/{api,apimachinery,...} sources of the
same release: only struct tags and field types are read. CRATE is the source of the k8s-openapi crate, whose doc comments
are the descriptions. README.md describes the written format.
"""
import json, pathlib, re, sys, zlib

facts, go, crate, out = (pathlib.Path(a) for a in sys.argv[1:5])
types = json.load(open(facts / "types.json"))
CORE = "io.k8s.api."
MODULES = {
    "io.k8s.api.": "k8s.io/api/",
    "io.k8s.apimachinery.": "k8s.io/apimachinery/",
    "io.k8s.apiextensions-apiserver.": "k8s.io/apiextensions-apiserver/",
    "io.k8s.kube-aggregator.": "k8s.io/kube-aggregator/",
}


def folder(package):
    for prefix, module in MODULES.items():
        if (package + ".").startswith(prefix):
            return module + (package + ".")[len(prefix):].rstrip(".").replace(".", "/")
    return None


FIELD = re.compile(r'^\s*(?:(\w+)\s+)?([\w.*\[\]{}]+)\s+`([^`]*)`')
packages = {}


def package_of(name):
    """Structs (name -> [(go name, go type, tag)]) and named types of a Go package."""
    if name in packages:
        return packages[name]
    structs, named = {}, {}
    for file in sorted((go / name).glob("types*.go")):
        if "test" in file.name or "swagger" in file.name:
            continue
        current = None
        for line in file.read_text().splitlines():
            if current is not None:
                if line.startswith("}"):
                    current = None
                elif not line.strip().startswith("//") and (m := FIELD.match(line)):
                    structs[current].append(m.groups())
                continue
            if m := re.match(r"^type (\w+) struct \{", line):
                current = m[1]
                structs[current] = []
            elif m := re.match(r"^type (\w+) ([\w.\[\]*{}]+)\s*(?://.*)?$", line):
                named[m[1]] = m[2]
    packages[name] = (structs, named)
    return packages[name]


ALIASES = {"metav1": "k8s.io/apimachinery/pkg/apis/meta/v1", "v1": None, "apps": None}


def json_fields(package, name, depth=0):
    """JSON name -> (order, pointer, omitempty, omitzero, go type)."""
    structs, _ = package_of(package)
    found = {}
    for _, kind, tag in structs.get(name, []):
        m = re.search(r'json:"([^"]*)"', tag)
        if not m:
            continue
        parts = m[1].split(",")
        if "inline" in parts or parts[0] == "":
            target = kind.lstrip("*")
            if target.endswith("TypeMeta"):
                found.update({"kind": (False, True, False, "string"), "apiVersion": (False, True, False, "string")})
            elif "." in target:
                prefix, short = target.split(".")
                where = ALIASES.get(prefix) or "k8s.io/api/core/v1"
                found.update(json_fields(where, short, depth + 1))
            else:
                found.update(json_fields(package, target, depth + 1))
            continue
        found[parts[0]] = (kind.startswith("*"), "omitempty" in parts, "omitzero" in parts, kind.lstrip("*"))
    return found


BASE = {("string", None): "s", ("integer", "int32"): "i32", ("integer", "int64"): "i64",
        ("boolean", None): "b", ("number", "double"): "f", ("string", "byte"): "y"}
GO = {"s": "string", "i32": "int32", "i64": "int64", "b": "bool", "f": "float64", "y": "[]uint8"}


def short(ref, package):
    return "@" + (ref[len(package) + 1:] if ref.rpartition(".")[0] == package else ref)


def spelled(d, package):
    if "ref" in d:
        return short(d["ref"], package)
    if d.get("type") == "array":
        return "[" + spelled(d["items"], package)
    if d.get("type") == "object" and "map" in d:
        return "{" + spelled(d["map"], package)
    return BASE[(d["type"], d.get("format"))]


def go_default(d):
    """How Go names the type when nothing in the source says otherwise."""
    if "ref" in d:
        package, _, name = d["ref"].rpartition(".")
        return package.rpartition(".")[2] + "." + name
    if d.get("type") == "array":
        return "[]" + go_default(d["items"])
    if d.get("type") == "object" and "map" in d:
        return "map[string]" + go_default(d["map"])
    return GO[BASE[(d["type"], d.get("format"))]]


PREFIX = {"metav1": "v1", "corev1": "v1", "apiextensionsv1": "v1", "authenticationv1": "v1"}


def go_name(kind, package):
    kind = kind.replace("*", "*")
    if kind.startswith("[]"):
        return "[]" + go_name(kind[2:], package)
    if m := re.match(r"map\[(.+?)\](.+)", kind):
        return f"map[{go_name(m[1], package)}]{go_name(m[2], package)}"
    star = "*" if kind.startswith("*") else ""
    kind = kind.lstrip("*")
    if kind in ("string", "int32", "int64", "bool", "float64", "int", "interface{}"):
        return star + kind
    if kind == "byte":
        return star + "uint8"
    if "." in kind:
        prefix, name = kind.split(".")
        return star + PREFIX.get(prefix, prefix) + "." + name
    return star + package.rpartition("/")[2] + "." + kind


def presence(d, info):
    """What Go writes for a zero value: o nothing, p null never but zero kept, a always, n null."""
    pointer, omitempty, omitzero, kind = info
    struct = "ref" in d and types[d["ref"]].get("type") == "object" and "." in d["ref"]
    if pointer:
        return "p" if omitempty else "n"
    if omitzero:
        return "o"
    if struct and not kind.endswith(("FieldsV1",)):
        return "a"
    if "ref" in d and not omitempty:
        return "a"
    if "ref" in d and omitempty:
        return "a" if d["ref"].endswith(("Quantity", "IntOrString", "MicroTime", ".Time")) else "o"
    return "o" if omitempty else "a"


def attributes(name, field, d, required, info, package):
    a = []
    if field in required:
        a.append("!")
    if info and (p := presence(d, info)) != "o":
        a.append(p)
    if "list" in d:
        a.append("l=" + d["list"] + (":" + ",".join(d["keys"]) if "keys" in d else ""))
    if "patch" in d:
        a.append("ps=" + d["patch"])
    if "patchKey" in d:
        a.append("pk=" + d["patchKey"])
    if "maptype" in d:
        a.append("m=" + d["maptype"])
    if info:
        g = go_name(info[3], folder(package))
        if g != go_default(d):
            a.append("g=" + g)
    if "default" in d:
        a.append("d=" + json.dumps(d["default"]))
    return " ".join(a)


missing = []
with open(out / "types.tsv", "w") as f:
    for name in sorted(types):
        d = types[name]
        package, _, plain = name.rpartition(".")
        kind = d.get("type", "any")
        if "oneOf" in d:
            kind = "quantity" if plain == "Quantity" else "int-or-string"
        if plain in ("RawExtension", "FieldsV1", "Patch"):
            kind = "raw"
        if plain.startswith("JSONSchemaPropsOr"):
            kind = {"Array": "schema-or-array", "Bool": "schema-or-bool"}.get(plain[17:], "schema-or-strings")
        kind = {"Time": "time", "MicroTime": "micro-time"}.get(plain, kind)
        head = ["=" + name, kind]
        if "maptype" in d:
            head.append("m=" + d["maptype"])
        for gvk in d.get("gvk", []):
            head.append("k=" + gvk)
        f.write("\t".join(head) + "\n")
        fields = d.get("fields") or {}
        known = json_fields(folder(package), plain) if fields else {}
        for field in [k for k in known if k in fields] + sorted(k for k in fields if k not in known):
            if field not in known:
                missing.append(f"{name}.{field}")
            info = known.get(field)
            row = [field, spelled(fields[field], package),
                   attributes(name, field, fields[field], d.get("required", []), info, package)]
            f.write("\t".join(row).rstrip("\t") + "\n")
print("fields without a Go source:", missing, file=sys.stderr)


# Protobuf messages: those reachable from the types, with the JSON names the types have.
protobuf = json.load(open(facts / "protobuf.json"))
NAMES = {"schema": "$schema", "ref": "$ref", "xKubernetesPreserveUnknownFields": "x-kubernetes-preserve-unknown-fields",
         "xKubernetesEmbeddedResource": "x-kubernetes-embedded-resource",
         "xKubernetesIntOrString": "x-kubernetes-int-or-string", "xKubernetesListMapKeys": "x-kubernetes-list-map-keys",
         "xKubernetesListType": "x-kubernetes-list-type", "xKubernetesMapType": "x-kubernetes-map-type",
         "xKubernetesValidations": "x-kubernetes-validations"}
SCALARS = {"string": "s", "bytes": "y", "bool": "b", "int32": "i", "int64": "i", "uint32": "i", "uint64": "i",
           "double": "f"}


def open_name(message):
    parts = message.split(".")
    return "io.k8s." + ".".join(parts[2:]).replace("apiextensions_", "apiextensions-").replace("kube_", "kube-")


def reachable(message, known):
    if message in known or message not in protobuf:
        return
    known.add(message)
    for _, kind, _ in protobuf[message].values():
        reachable(kind, known)


# Forms of objects that no type of the API description has.
FORMS = ("PartialObjectMetadata", "PartialObjectMetadataList")
messages = set()
for message in protobuf:
    if open_name(message) in types or message.endswith(tuple(f".meta.v1.{form}" for form in FORMS)):
        reachable(message, messages)
with open(out / "messages.tsv", "w") as f:
    for message in sorted(messages, key=open_name):
        name = open_name(message)
        package = name.rpartition(".")[0]
        fields = (types.get(name) or {}).get("fields") or {}
        lower = {field.lower(): field for field in fields}
        f.write(f"={name}\n")
        for number, (field, kind, label) in sorted(protobuf[message].items(), key=lambda e: int(e[0])):
            if fields and field not in fields:
                field = NAMES.get(field, field) if name.endswith("JSONSchemaProps") else lower.get(field.lower(), "")
            spelling = SCALARS.get(kind) or short(open_name(kind), package)
            mark = "[" if label == "repeated" else "{" if label.startswith("map") else ""
            f.write(f"{number}\t{field}\t{mark}{spelling}\n")


# Resources served by default: the stable versions.
GROUP_VERSIONS = re.compile(r"^([a-z.0-9-]+/)?v\d+$")
with open(facts / "resources.tsv") as f, open(out / "resources.tsv", "w") as g:
    for line in f:
        columns = line.rstrip("\n").split("\t")
        if GROUP_VERSIONS.match(columns[0]):
            g.write("\t".join(columns) + "\n")


# Descriptions of the types that stable versions use.
def described(file):
    """Name of the type, and its and its fields' descriptions by JSON name."""
    text = file.read_text()
    name = re.match(r"// Generated from definition (\S+)", text)
    if not name:
        return None, {}
    keys = {rust: field for field, rust in re.findall(r'"([^"]+)" => Field::Key_(\w+)', text)}
    found, pending, inside = {}, [], False
    for line in map(str.strip, text.splitlines()):
        if line.startswith("///"):
            # Doc comments escape what Markdown would take for markup.
            pending.append(re.sub(r"\\([\\\[\]<>])", r"\1", line[3:].removeprefix(" ")))
        elif line.startswith("pub struct ") and not inside:
            found[""] = "\n".join(pending).strip()
            pending, inside = [], True
            if not line.endswith("{"):
                break
        elif inside and (m := re.match(r"pub (?:r#)?(\w+):", line)):
            found[keys.get(m[1], m[1])] = "\n".join(pending).strip()
            pending = []
        elif inside and line.startswith("}"):
            break
        elif line and not line.startswith("#["):
            pending = []
    return name[1], found


def used(name, known):
    if name in known or name not in types:
        return
    known.add(name)
    for d in (types[name].get("fields") or {}).values():
        while "items" in d or "map" in d:
            d = d.get("items") or d["map"]
        if "ref" in d:
            used(d["ref"], known)


wanted = set()
for name, d in types.items():
    if any(GROUP_VERSIONS.match(gvk.rpartition("/")[0].lstrip("/")) for gvk in d.get("gvk", [])):
        used(name, wanted)
blocks = []
for file in sorted((crate / "src" / "v1_36").rglob("*.rs")):
    name, texts = described(file)
    if name in wanted:
        escape = lambda text: text.replace("\\", "\\\\").replace("\n", "\\n")
        lines = [f"{field}\t{escape(text)}" for field, text in texts.items() if text and field]
        blocks.append("\n".join([f"={name}\t{escape(texts.get('', ''))}"] + lines))
(out / "descriptions.z").write_bytes(zlib.compress("\n".join(blocks).encode(), 9))
