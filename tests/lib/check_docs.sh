#!/usr/bin/env bash
# Part of `make check`: the documentation tells what is there: every option that a command's --help names stands in that command's section of the
# man page, and every option of the man page exists; the man page is clean; links between the texts lead somewhere.
. "$(dirname "$0")/../lib/common.sh"
need_program
cd "$GW_SRCDIR"
page=man/godwit.1

# Long options that have a paragraph of their own in a command's section of the man page.
options_of_section() {
    sed -n "/^\.SS $1\$/,/^\.S[SH] /p" $page | sed -n '/^\.TP$/{n;s/\\-/-/g;p}' | grep -oE -- '--[a-z][a-z-]+' | sort -u
}

for command in run status notice verify inspect plan tokenize perplexity bench; do
    "$GODWIT" $command --help >"$GW_TMP/help" || fail "$command --help exits $?"
    # the first option of a line of the list; usage lines and sentences are not meant
    grep -E '^ +(-[a-z], )? *--[a-z]' "$GW_TMP/help" | grep -oE -- '--[a-z][a-z-]+' | sort -u >"$GW_TMP/wanted"
    [ -s "$GW_TMP/wanted" ] || fail "$command --help lists no options: this test is broken"
    options_of_section $command >"$GW_TMP/given"
    while read -r option; do
        [ "$option" = --help ] || grep -qx -- "$option" "$GW_TMP/given" || fail "$page: $command has $option and the page does not"
    done <"$GW_TMP/wanted"
    while read -r option; do
        grep -q -- "$option" "$GW_TMP/help" || fail "$page: $command has no $option"
    done <"$GW_TMP/given"
done

# What the sources name must be told: the words on stdin, each found in the man page and in usage.md by the given patterns
# (@ stands for the word). Fewer words than LEAST mean that the sources are written in another way now.
expect_told() { # expect_told WHAT LEAST PATTERN_IN_MAN PATTERN_IN_USAGE
    local word count=0
    while read -r word; do
        count=$((count + 1))
        [ -z "$3" ] || grep -qE -- "${3//@/$word}" $page || fail "$page does not name $1 $word"
        grep -qE -- "${4//@/$word}" docs/usage.md || fail "docs/usage.md does not name $1 $word"
    done
    [ "$count" -ge "$2" ] || fail "only $count of $1 found in the sources: this test is broken"
}
grep -rhoE 'getenv\("[A-Z_]+"\)' src kernels | sed 's/.*"\(.*\)".*/\1/' | sort -u | expect_told variable 6 '@' '`@`'
sed -n 's/^ *X(GW_[A-Z_]*, \([0-9]*\),.*/\1/p' src/base/error.h | sort -un | expect_told "exit code" 12 '^\.B @$' '^\| @ \|'
sed -n '/json_pack($/,/lost_ranks);/p' src/job/record.c | grep -oE '"[a-z_]+"' | tr -d '"' | sort -u |
    expect_told "status key" 20 '' '`@`'

# Links between the texts.
for text in README.md CONTRIBUTING.md docs/*.md docs/dev/*.md; do
    while read -r link; do
        case $link in *://* | '#'* | '') continue ;; esac
        [ -e "$(dirname "$text")/${link%%#*}" ] || fail "$text: the link $link leads nowhere"
    done < <(grep -oE '\]\([^) ]+\)' "$text" | sed 's/^](//;s/)$//')
done

if command -v groff >/dev/null; then
    groff -ww -man -Tutf8 $page >/dev/null 2>"$GW_TMP/groff"
    [ ! -s "$GW_TMP/groff" ] || { cat "$GW_TMP/groff"; fail "$page is not clean"; }
fi
echo "options, variables, exit codes, status keys and links agree"
