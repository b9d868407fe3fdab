#!/usr/bin/env bash
# Sets everything up, then runs the main job: 80 real chat prompts with SmolLM2-135M-Instruct on 4 MPI ranks of this machine; and once more
# with a rank killed half way, to show that the answers are the same to the byte.
#
# usage: jobs/quickstart.sh [--again] [-n RANKS]
#   --again   forget the answers of an earlier quickstart and compute them anew
#   -n RANKS  MPI ranks (default 4)
#
# The answers go to data/quickstart/output.jsonl. A second quickstart finds them there and is done in seconds; one that was
# interrupted carries on. The digest at the end is the same for any number of ranks.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

again=no ranks=4 out=$top/data/quickstart
while [ $# != 0 ]; do
    case $1 in
        --again) again=yes ;;
        -n) shift; ranks=${1:-} ;;
        --help | -h) sed -n '2,/^\. /{/^\. /!s/^# \{0,1\}//p}' "$0"; exit 0 ;;
        *) die "unknown option $1" "see jobs/quickstart.sh --help" ;;
    esac
    shift
done
[[ $ranks =~ ^[1-9][0-9]*$ ]] || die "-n wants a number of ranks, not '$ranks'"

setup_all no
cd "$top"
prompts=data/prompts/quickstart.jsonl
[ $again = no ] || rm -rf "$out"
shown_model=${model#"$top"/}

say "${bold}the main job${plain}: $(wc -l <"$prompts") prompts on $ranks ranks"
say "  \$ build/godwit run -m $shown_model -i $prompts -o data/quickstart -n $ranks"
rc=0
build/godwit run -m "$shown_model" -i "$prompts" -o data/quickstart -n "$ranks" || rc=$?
case $rc in
    0) ;;
    7) die "data/quickstart holds the answers of another model or other prompts" "jobs/quickstart.sh --again starts afresh" ;;
    130) die "stopped on request; the same command carries on" ;;
    *) die "godwit run ended with exit code $rc (what it means: build/godwit run --help)" "its files: data/quickstart" ;;
esac

say "${bold}some answers${plain} (all: data/quickstart/output.jsonl)"
python3 - "$prompts" data/quickstart/output.jsonl <<'PY'
import json, sys, textwrap
asked = {}
for line in open(sys.argv[1], encoding="utf-8"):
    r = json.loads(line)
    asked[r["custom_id"]] = r["body"]["messages"][-1]["content"]
answers = [json.loads(line) for line in open(sys.argv[2], encoding="utf-8")]
answers.sort(key=lambda a: a["custom_id"])
def show(mark, text):
    text = " ".join(text.split())
    print(textwrap.fill(textwrap.shorten(text, 400), 110, initial_indent="  " + mark, subsequent_indent=" " * (2 + len(mark))))
for a in answers[:: max(1, len(answers) // 3)][:3]:
    choice = a["response"]["body"]["choices"][0]
    print(f"  [{a['custom_id']}]")
    show("asked:    ", asked[a["custom_id"]])
    show("answered: ", choice["message"]["content"] + (" ..." if choice["finish_reason"] == "length" else ""))
PY

say "${bold}speed and check${plain}"
build/godwit status data/quickstart | sed -n 's/^\(progress\|layout\|model\)/  &/p'
build/godwit verify data/quickstart | sed 's/^/  /' || die "verify found problems (above)"
if [ "$ranks" -gt 1 ]; then
    say "${bold}the same job, and half way a rank is killed${plain} (kill -9), lost, replaced by a new one"
    spec='kill:1@step=25'
    say "  \$ build/godwit run -m $shown_model -i $prompts -o data/quickstart-kill -n $ranks --chaos '$spec'"
    rm -rf data/quickstart-kill
    build/godwit run -m "$shown_model" -i "$prompts" -o data/quickstart-kill -n "$ranks" --chaos "$spec" ||
        die "the job with a killed rank failed" "its files: data/quickstart-kill"
    tell='s/.*"event":"\(plan\|grow\|ready\|recovered\)".*/&/p'
    sed -n "$tell" data/quickstart-kill/events.jsonl | tail -n +2 | sed 's/^/  /' | cut -c1-200
    undisturbed=$(build/godwit verify data/quickstart | sed -n 's/^digest *//p')
    disturbed=$(build/godwit verify data/quickstart-kill | sed -n 's/^digest *//p')
    say "  undisturbed  $undisturbed"
    say "  rank killed  $disturbed"
    [ "$undisturbed" = "$disturbed" ] || die "the digests differ: please report this" "data/quickstart, data/quickstart-kill"
fi
say "Next: README.md, or your own requests: build/godwit run -m MODEL.gguf -i batch.jsonl -o OUTDIR -n $ranks"
