#!/usr/bin/env bash
# What the GitHub Action (action.yml) runs: build, report, compare. Inputs come as variables, so that none is code.
# The exit code is the build's, else that of the comparison; the report is written in every case.
set -u

build=(edgekit build "$ACTION_SOURCE" --target "$ACTION_TARGETS" --out "$ACTION_FOLDER")
[ -n "${ACTION_CALIBRATION:-}" ] && build+=(--calib "$ACTION_CALIBRATION")
[ -n "${ACTION_EVALUATION:-}" ] && build+=(--eval "$ACTION_EVALUATION")
while IFS= read -r line; do
  line="${line%$'\r'}"
  [ -n "$line" ] || continue
  # "--samples 64" is an option and its value; what follows the first space is the value as it is.
  case "$line" in
    *" "*) build+=("${line%% *}" "${line#* }") ;;
    *) build+=("$line") ;;
  esac
done <<<"${ACTION_FURTHER:-}"
unset ACTION_SOURCE ACTION_TARGETS ACTION_CALIBRATION ACTION_EVALUATION ACTION_FURTHER

"${build[@]}"
code=$?

summary="${GITHUB_STEP_SUMMARY:-/dev/null}"
page="$ACTION_FOLDER/report.html"
if edgekit report "$ACTION_FOLDER" --html "$page"; then
  [ -n "${GITHUB_OUTPUT:-}" ] && printf 'report=%s\nartifacts=%s\n' "$page" "$ACTION_FOLDER" >>"$GITHUB_OUTPUT"
fi

if [ -n "${ACTION_BASELINE:-}" ] && [ -d "$ACTION_BASELINE" ]; then
  compare=(edgekit compare "$ACTION_BASELINE" "$ACTION_FOLDER" --markdown "$ACTION_FOLDER/compare.md")
  compare+=(--junit "$ACTION_FOLDER/compare.xml")
  [ -n "${ACTION_REGRESSION:-}" ] && compare+=(--fail-on-regression "$ACTION_REGRESSION")
  "${compare[@]}"
  compared=$?
  [ -f "$ACTION_FOLDER/compare.md" ] && cat "$ACTION_FOLDER/compare.md" >>"$summary"
  [ "$code" -eq 0 ] && code=$compared
fi
exit "$code"
