#!/bin/sh
# Runs `make test` on every Python that rfflow says it runs on, as far as they can be had here, and says which it ran.
# PYTHONS="3.12 3.13" chooses among them; RUN="make target" another target than test.
set -u
cd "$(dirname "$0")/.."
make=${MAKE:-make}
passed= failed= missing=

# Prints the path of a Python of that version. A shim of pyenv's may stand on the path and run nothing.
found() {
	for candidate in "$(command -v "python$1")" "$(pyenv root 2>/dev/null)"/versions/"$1".*/bin/python; do
		"$candidate" -c "" 2>/dev/null && echo "$candidate" && return
	done
	uv python find --no-project "$1" 2>/dev/null && return
	uv python install "$1" >/dev/null 2>&1 && uv python find --no-project "$1" 2>/dev/null
}

for version in ${PYTHONS:-3.11 3.12 3.13}; do
	python=$(found "$version")
	if [ -z "$python" ]; then
		missing="$missing $version"
	elif $make "${RUN:-test}" VENV=".venv-$version" PYTHON="$python"; then
		passed="$passed $version"
	else
		failed="$failed $version"
	fi
done
echo "Passed:${passed:- none}. Failed:${failed:- none}. Not to be had here:${missing:- none}."
[ -z "$failed" ] && [ -n "$passed" ]
