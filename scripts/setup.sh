# Sourced by train.sh and tests/run.sh with the clone in $root: leaves $python, with the requirements in it.
# Uses the active virtual environment if there is one, else makes .venv in the clone. A file already installed
# from this clone, unchanged since, is not installed again.
# Is help, or the plan of a dry run, all that is asked for? Then $python is what there is: nothing is installed.
asks_help() { # the script's arguments
    case "${DRY_RUN:-} $* " in "1 "* | *" --help "* | *" -h "*) . "$root/scripts/python.sh" ;; *) return 1 ;; esac
}
setup() { # requirement files, below $root
    . "$root/scripts/python.sh" # of an active environment that is gone it says so
    venv=${VIRTUAL_ENV:-$root/.venv}
    python=$venv/bin/python
    if [ ! -x "$python" ]; then
        "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
            echo "error: ${PYTHON:-python3} is no Python 3.10 or newer: PYTHON=python3.12 names another" >&2
            return 1
        }
        echo "Making a virtual environment in $venv"
        "${PYTHON:-python3}" -m venv "$venv" || return 1
    fi
    new=
    for file in "$@"; do
        mark="$root/$file $(cat "$root/$file" "$root/Dassl.ProGrad.pytorch/pyproject.toml" | cksum)"
        if ! grep -qsxF "$mark" "$venv/.installed"; then
            echo "Installing $file (PyTorch is large: some minutes)"
            (cd "$root" && "$python" -m pip install --quiet --disable-pip-version-check --no-compile -r "$file") || return 1
            echo "$mark" >> "$venv/.installed"
            new=1
        fi
    done
    if [ "$new" ]; then # to byte code on all cores: pip takes one, and PyTorch more than a minute
        "$python" -m compileall -qq -j 0 "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" || true
    fi
}
