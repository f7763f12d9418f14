"""A stand-in for gcloud, not the real one: queued resources and hosts that are folders, kept in the folder $STAND_IN.

It knows the few commands that launch/gcloud.py gives; anything else is an error. `ssh` runs the script in a shell whose
HOME is the host's folder. The folder holds
  calls.jsonl    the arguments of every call, in order
  project        what `config get-value project` says
  queue.json     {name: {"states": [now, after the next look, ...], "nodes": {node: state}, "hosts": of a node}}
  new.json       the states that a queued resource goes through when it is asked for
  fail.json      {"ssh": ["UNAVAILABLE", ...]}: what the next calls of a kind fail with
  stuck.json     how many deletions still come to nothing
  unprepared     the name of a slice that ssh leaves out with a warning and exit code 0, as the real one does
  hosts/NODE-w-I the home folders
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(os.environ["STAND_IN"])
HOSTS_OF = {"v5litepod-16": 4, "v5litepod-4": 1, "v2-8": 1}


def read(name: str, default: object) -> object:
    path = ROOT / name
    return json.loads(path.read_text()) if path.exists() else default


def write(name: str, value: object) -> None:
    (ROOT / name).write_text(json.dumps(value))


def error(sentence: str, code: int = 1) -> None:
    print(f"ERROR: (gcloud.stand-in) {sentence}", file=sys.stderr)
    sys.exit(code)


def flag(arguments: list[str], name: str, default: str = "") -> str:
    return next((each.split("=", 1)[1] for each in arguments if each.startswith(f"--{name}=")), default)


def known(name: str) -> dict:
    queue = read("queue.json", {})
    if name not in queue:
        error(f"NOT_FOUND: Resource 'projects/p/locations/z/queuedResources/{name}' was not found")
    return queue


def create(arguments: list[str]) -> None:
    name, queue = arguments[0], read("queue.json", {})
    if name in queue:
        error(f"ALREADY_EXISTS: {name}")
    count = int(flag(arguments, "node-count", "1"))
    nodes = (
        [flag(arguments, "node-id")] if count == 1 else [f"{flag(arguments, 'node-prefix')}-{i}" for i in range(count)]
    )
    hosts = HOSTS_OF[flag(arguments, "accelerator-type")]
    queue[name] = {"states": read("new.json", ["ACTIVE"]), "nodes": dict.fromkeys(nodes, "READY"), "hosts": hosts}
    write("queue.json", queue)
    for node in nodes:
        for i in range(hosts):
            (ROOT / "hosts" / f"{node}-w-{i}").mkdir(parents=True)


def delete(arguments: list[str]) -> None:
    queue, stuck = known(arguments[0]), read("stuck.json", 0)
    if stuck:
        queue[arguments[0]]["states"] = ["DELETING"]
        write("queue.json", queue)
        write("stuck.json", stuck - 1)
        return
    for node in queue.pop(arguments[0])["nodes"]:
        for home in (ROOT / "hosts").glob(f"{node}-w-*"):
            shutil.rmtree(home)
    write("queue.json", queue)


def describe(arguments: list[str]) -> None:
    queue = known(arguments[0])
    states = queue[arguments[0]]["states"]
    print(states.pop(0) if len(states) > 1 else states[0])
    write("queue.json", queue)


def describe_node(arguments: list[str]) -> None:
    nodes = {node: state for each in read("queue.json", {}).values() for node, state in each["nodes"].items()}
    if arguments[0] not in nodes:
        error(f"NOT_FOUND: Resource 'projects/p/locations/z/nodes/{arguments[0]}' was not found")
    print(nodes[arguments[0]])


def homes(name: str, arguments: list[str]) -> list[pathlib.Path]:
    nodes = known(name)[name]["nodes"]
    unprepared = ROOT / "unprepared"
    if unprepared.exists():
        print("WARNING: Could not prepare all nodes, attempting to ssh into the rest.", file=sys.stderr)
        nodes = {node: state for node, state in nodes.items() if node != unprepared.read_text()}
    chosen = list(nodes) if flag(arguments, "node") == "all" else list(nodes)[:1]
    for node in chosen:
        if nodes[node] != "READY":
            error(f"TPU {node} is in state {nodes[node]}")
    found = [home for node in chosen for home in sorted((ROOT / "hosts").glob(f"{node}-w-*"))]
    return found if flag(arguments, "worker") == "all" else found[:1]


def ssh(arguments: list[str]) -> None:
    bad = 0
    for home in homes(arguments[0], arguments):
        place = {"HOME": str(home), "PATH": f"{ROOT}/bin:/usr/bin:/bin", "HOST": home.name, "STAND_IN": str(ROOT)}
        ended = subprocess.run(["sh", "-c", flag(arguments, "command")], env=place, cwd=home, stdin=subprocess.DEVNULL)
        bad = bad or ended.returncode
    sys.exit(bad)


def scp(arguments: list[str]) -> None:
    source, to = (each for each in arguments if not each.startswith("--"))
    if ":" in to:
        name, file = to.split(":")
        for home in homes(name, arguments):
            shutil.copy(source, home / file)
        return
    name, path = source.split(":")
    home = homes(name, ["--node=0", "--worker=0"])[0]
    for each in home.glob(path):
        shutil.copytree(each, f"{to}/{each.name}") if each.is_dir() else shutil.copy(each, to)


COMMANDS = {
    ("compute", "tpus", "queued-resources", "create"): create,
    ("compute", "tpus", "queued-resources", "delete"): delete,
    ("compute", "tpus", "queued-resources", "describe"): describe,
    ("compute", "tpus", "queued-resources", "ssh"): ssh,
    ("compute", "tpus", "queued-resources", "scp"): scp,
    ("compute", "tpus", "tpu-vm", "describe"): describe_node,
    ("config", "get-value", "project"): lambda arguments: print((ROOT / "project").read_text()),
    ("storage", "rsync"): lambda arguments: print("copied"),
}


def main() -> None:
    with open(ROOT / "calls.jsonl", "a") as file:
        file.write(json.dumps(sys.argv[1:]) + "\n")
    for words, command in COMMANDS.items():
        if tuple(sys.argv[1 : len(words) + 1]) == words:
            failing = read("fail.json", {})
            if sentences := failing.get(words[-1]):
                write("fail.json", failing | {words[-1]: sentences[1:]})
                error(sentences[0])
            command(sys.argv[len(words) + 1 :])
            return
    error(f"Invalid choice: {' '.join(sys.argv[1:])}", 2)


if __name__ == "__main__":
    main()
