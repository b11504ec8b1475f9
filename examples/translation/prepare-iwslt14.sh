#!/usr/bin/env bash
# From the official archive of IWSLT14 German-English, or from your own text, to a data folder for fairseq.
# `prepare-iwslt14.sh --help` lists the options; README.md, "Prepare IWSLT14", has examples.
set -euo pipefail

HERE=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
OFFICIAL=http://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz
SMALLEST_FREE_KB=400000 # the full corpus takes about 150 MB in all its stages

OUTPUT=iwslt14 ARCHIVE='' TEXT='' URL=$OFFICIAL SHA256='' SOURCE=de TARGET=en
CODES='' MERGES=10000 SENTENCEPIECE='' SRCDICT='' TGTDICT='' TOKENISED='' LABEL='' WORKERS=1 FORCE=''

usage() {
    cat <<USAGE
usage: $(basename "$0") [options]

Where the text comes from (one of):
  (nothing)            fetch the archive from --url; an interrupted download goes on
  --archive FILE       a de-en.tgz that you have
  --text-dir DIR       tokenised text, {train,valid,test}.{SRC,TGT}, taken as it is (with --sentencepiece: not tokenised)
options:
  --output DIR         what to make: DIR/text and DIR/data-bin (default: $OUTPUT)
  --url URL            default: $OFFICIAL
  --sha256 HEX         refuse an archive with another checksum
  --source-lang SRC    default: $SOURCE (the archive has de and en)
  --target-lang TGT    default: $TARGET
  --bpe-merges N       joint BPE, learned on the training set (default: $MERGES)
  --bpe-codes FILE     use these codes of subword-nmt instead of learning some
  --sentencepiece N    a joint SentencePiece vocabulary of N instead of BPE, for untokenised text of --text-dir
  --srcdict FILE       use this dictionary of fairseq instead of making one
  --tgtdict FILE       likewise
  --tokenised moses|no what the text of --text-dir is, if it is something else or is taken for something else
  --label TEXT         what results on this data must always say, such as "30 % of the training set"
  --workers N          processes (default: $WORKERS)
  --force              replace an earlier call's DIR/text and DIR/data-bin
Set MOSES to a folder of mosesdecoder to tokenise with its Perl scripts; otherwise sacremoses does it.
Set PYTHON to the Python that fairseq is installed in (default: .venv of the checkout, or python3).
USAGE
}

refuse() {
    printf 'prepare-iwslt14.sh: error: %s\n' "$*" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
    --help | -h) usage && exit 0 ;;
    --force) FORCE=yes && shift && continue ;;
    esac
    [ $# -ge 2 ] || refuse "\`$1\` must be an option with a value."
    [ -n "$2" ] || [ "$1" = --label ] || refuse "\`$1\` must have a value, but it is empty."
    case $1 in
    --output) OUTPUT=$2 ;;
    --archive) ARCHIVE=$2 ;;
    --text-dir) TEXT=$2 ;;
    --url) URL=$2 ;;
    --sha256) SHA256=$2 ;;
    --source-lang) SOURCE=$2 ;;
    --target-lang) TARGET=$2 ;;
    --bpe-merges) MERGES=$2 ;;
    --bpe-codes) CODES=$2 ;;
    --sentencepiece) SENTENCEPIECE=$2 ;;
    --srcdict) SRCDICT=$2 ;;
    --tgtdict) TGTDICT=$2 ;;
    --tokenised) TOKENISED=$2 ;;
    --label) LABEL=$2 ;;
    --workers) WORKERS=$2 ;;
    *) refuse "\`$1\` must be an option that --help lists." ;;
    esac
    shift 2
done

PYTHON=${PYTHON:-$HERE/../../.venv/bin/python}
command -v "$PYTHON" >/dev/null || PYTHON=python3
BIN=$("$PYTHON" -c 'import os, sys; print(os.path.dirname(sys.executable))')

# The last error in a log with the two lines behind it, on one line; without one, the log's last line.
why() {
    local error='/^[A-Za-z_.]*(Error|Exception)/ { found = $0; left = 2; next }'
    awk "$error"' left-- > 0 { found = found " " $0 } END { print found == "" ? $0 : found }' "$1"
}

# A download that is not the archive: kept for whoever wants to look, fetched anew by the next call.
set_aside() {
    [ -n "$FETCHED" ] || return 0
    mv "$FETCHED" "$FETCHED.set-aside"
    printf 'prepare-iwslt14.sh: %s is now %s.set-aside: the same command fetches it again\n' "$FETCHED" "$FETCHED" >&2
}

# A console command of the Python's environment, or of the PATH.
tool() {
    local name=$1
    shift
    [ -x "$BIN/$name" ] && name=$BIN/$name
    "$name" "$@"
}

# Files of the text whose sentences end in a word with its full stop (raw), or in a full stop apart (tokenised).
files_that_are() {
    local kind=$1 subset language
    local ends='NF { lines++; if ($NF ~ /^[.?!]+$/ || (NF > 1 && $(NF - 1) ~ /^[.?!]+$/)) apart++; else if ($NF ~ /[^.?!][.?!]["\047)]*$/) joined++ }'
    local judged='END { print (joined > apart && joined * 10 > lines) ? "raw" : (apart > joined && apart * 10 > lines) ? "tokenised" : "" }'
    for subset in train valid test; do
        for language in "$SOURCE" "$TARGET"; do
            [ "$(awk "$ends $judged" "$TEXT/$subset.$language")" != "$kind" ] || printf '%s.%s ' "$subset" "$language"
        done
    done
}

helper() { "$PYTHON" "$HERE/prepare_text.py" "$@"; }

[ -z "$ARCHIVE" ] || [ -z "$TEXT" ] || refuse "\`--archive\` and \`--text-dir\` must not be given together."
[ -z "$SENTENCEPIECE" ] || [ -z "$CODES" ] || refuse "\`--sentencepiece\` and \`--bpe-codes\` must not be given together."
[ -z "$SENTENCEPIECE" ] || [ -n "$TEXT" ] || refuse "\`--sentencepiece\` must come with \`--text-dir\`: the archive is Moses-tokenised."
[ -z "$ARCHIVE" ] || [ -f "$ARCHIVE" ] || refuse "\`--archive\` must be a file, but $ARCHIVE does not exist."
[ -z "$TEXT" ] || [ -d "$TEXT" ] || refuse "\`--text-dir\` must be a folder, but $TEXT does not exist."
for file in "$CODES" "$SRCDICT" "$TGTDICT"; do
    [ -z "$file" ] || [ -f "$file" ] || refuse "codes and dictionaries must be files, but $file does not exist."
done
if [ -n "$TEXT" ]; then
    for subset in train valid test; do
        for language in "$SOURCE" "$TARGET"; do
            [ -f "$TEXT/$subset.$language" ] || refuse "\`--text-dir\` must hold $subset.$language, but $TEXT does not."
        done
    done
fi
case $TOKENISED in
'') ;;
moses | no) [ -n "$TEXT" ] || refuse "\`--tokenised\` must come with \`--text-dir\`: the archive is tokenised here." ;;
*) refuse "\`--tokenised\` must be moses or no, but is $TOKENISED." ;;
esac
if [ -n "$TEXT" ] && [ -z "$TOKENISED" ]; then # what the options say it is, unless it is plainly something else
    if [ -z "$SENTENCEPIECE" ]; then
        TOKENISED=moses OTHER=$(files_that_are raw)
        [ -z "$OTHER" ] || refuse "\`--text-dir\` must hold tokenised text, but sentences of ${OTHER% } end in a word with its full stop:" \
            "tokenise it, or give \`--sentencepiece N\`, or \`--tokenised no\` for BPE of the text as it is."
    else
        TOKENISED=no OTHER=$(files_that_are tokenised)
        [ -z "$OTHER" ] || refuse "\`--text-dir\` must hold text that is not tokenised for \`--sentencepiece\`, but sentences of ${OTHER% } end" \
            "in a full stop apart: give \`--tokenised moses\` if that is what you want."
    fi
fi
for number in "$MERGES" "$WORKERS" ${SENTENCEPIECE:+"$SENTENCEPIECE"}; do
    [[ $number =~ ^[1-9][0-9]*$ ]] || refuse "\`--bpe-merges\`, \`--sentencepiece\` and \`--workers\` must be whole numbers, but one is $number."
done
[ -z "$SHA256" ] || [ -z "$TEXT" ] || refuse "\`--sha256\` must come with an archive, not with \`--text-dir\`."
for made in text/report.txt data-bin/data.json; do # what every finished call leaves
    folder=$OUTPUT/${made%/*}
    [ -e "$folder" ] || continue
    [ -n "$FORCE" ] || refuse "\`--output\` must not hold text or data-bin without \`--force\`, but $folder is there."
    [ -f "$OUTPUT/$made" ] || refuse "\`--force\` replaces what this script made, but $folder has no ${made#*/}."
    [ -z "$TEXT" ] || [ ! "$TEXT" -ef "$folder" ] || refuse "\`--text-dir\` must not be what is replaced, but is $folder."
done
mkdir -p "$OUTPUT" || refuse "\`--output\` must be a folder that can be written, but $OUTPUT cannot."
FREE_KB=$(df -Pk "$OUTPUT" | awk 'NR == 2 { print $4 }')
[ "$FREE_KB" -ge "$SMALLEST_FREE_KB" ] || refuse "there must be $SMALLEST_FREE_KB kB free for $OUTPUT, but there are $FREE_KB."

exec 9<"$OUTPUT" # the lock is this shell's as long as it runs
"$PYTHON" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null ||
    refuse "\`--output\` must be nobody else's, but a run is under way in $OUTPUT."
WORK=$OUTPUT/.prepare-iwslt14 # what an interrupted run leaves here is never read
rm -rf "$WORK"
mkdir "$WORK"
trap 'rm -rf "$WORK"' EXIT
REPORT=$WORK/report.txt
note() { printf '%s\n' "$*" | tee -a "$REPORT"; }

FETCHED=''
if [ -z "$TEXT" ]; then
    TOKENISED=moses
    if [ -z "$ARCHIVE" ]; then
        ARCHIVE=$OUTPUT/de-en.tgz FETCHED=$OUTPUT/de-en.tgz
        if [ ! -f "$ARCHIVE" ]; then
            # 416: all of it is there already, from a call that was stopped before it could rename the file
            STATUS=$(curl --fail --location --retry 3 --continue-at - --output "$ARCHIVE.part" --write-out '%{http_code}' "$URL") ||
                [ "$STATUS" = 416 ] ||
                refuse "$URL must be reachable (the same command goes on where it stopped), but curl failed; or give \`--archive\`."
            mv "$ARCHIVE.part" "$ARCHIVE"
        fi
    fi
    FOUND=$("$PYTHON" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$ARCHIVE")
    [ -z "$SHA256" ] || [ "${SHA256,,}" = "$FOUND" ] ||
        refuse "the sha256 of $ARCHIVE must be ${SHA256,,}, but is $FOUND: remove the file and fetch it again."
    note "archive: sha256 $FOUND${SHA256:+, as asked for}"
    CODE=0
    helper archive "$ARCHIVE" "$WORK/tokenised" --languages "$SOURCE" "$TARGET" --workers "$WORKERS" --report "$REPORT" || CODE=$?
    [ "$CODE" != 3 ] || set_aside
    [ "$CODE" = 0 ] || exit 2
    TEXT=$WORK/tokenised
else
    WHAT='tokenised by Moses'
    [ "$TOKENISED" = moses ] || WHAT='not tokenised'
    note "text: as it is in the folder given, taken as $WHAT; nothing was tokenised, cleaned or lower-cased here"
fi

SEGMENTED=$WORK/text
mkdir "$SEGMENTED"
if [ -n "$SENTENCEPIECE" ]; then
    SEGMENTATION=sentencepiece
    helper sentencepiece "$TEXT" "$SEGMENTED" --languages "$SOURCE" "$TARGET" --size "$SENTENCEPIECE" --report "$REPORT" || exit $?
else
    SEGMENTATION=subword_nmt
    if [ -n "$CODES" ]; then
        cp "$CODES" "$SEGMENTED/codes"
        note "BPE: the codes given"
    else
        cat "$TEXT/train.$SOURCE" "$TEXT/train.$TARGET" | tool subword-nmt learn-bpe --symbols "$MERGES" >"$SEGMENTED/codes" 2>"$WORK/bpe.log" ||
            refuse "subword-nmt must learn codes, but failed: $(why "$WORK/bpe.log")"
        note "BPE: $MERGES merges learned jointly on the training set, with subword-nmt"
    fi
    for subset in train valid test; do
        for language in "$SOURCE" "$TARGET"; do
            tool subword-nmt apply-bpe --codes "$SEGMENTED/codes" --num-workers "$WORKERS" --input "$TEXT/$subset.$language" \
                --output "$SEGMENTED/$subset.$language" 2>>"$WORK/bpe.log" ||
                refuse "subword-nmt must segment $subset.$language, but failed: $(why "$WORK/bpe.log")"
        done
    done
fi

PREPROCESS=(--source-lang "$SOURCE" --target-lang "$TARGET" --trainpref "$SEGMENTED/train" --validpref "$SEGMENTED/valid"
    --testpref "$SEGMENTED/test" --destdir "$WORK/data-bin" --workers "$WORKERS")
[ -z "$SRCDICT" ] || PREPROCESS+=(--srcdict "$SRCDICT")
[ -z "$TGTDICT" ] || PREPROCESS+=(--tgtdict "$TGTDICT")
tool fairseq-preprocess "${PREPROCESS[@]}" >"$WORK/preprocess.log" 2>&1 ||
    refuse "fairseq-preprocess must succeed, but failed: $(why "$WORK/preprocess.log")"

helper finish "$TEXT" "$SEGMENTED" "$WORK/data-bin" --languages "$SOURCE" "$TARGET" --tokenised "$TOKENISED" \
    --segmentation "$SEGMENTATION" --label "$LABEL" --report "$REPORT" || exit $?
cp "$REPORT" "$SEGMENTED/report.txt"
helper place "$SEGMENTED" "$WORK/data-bin" "$OUTPUT" --languages "$SOURCE" "$TARGET" --report "$REPORT" ${FORCE:+--force} || exit $?
printf 'data folder: %s\n' "$OUTPUT/data-bin"
