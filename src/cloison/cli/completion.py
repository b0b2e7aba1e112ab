"""Code that teaches a shell to complete the tools: it asks `cloison complete`, which reads the tools' own parsers."""
from __future__ import annotations

TOOLS = (
    "qrexec-legacy-convert", "qrexec-policy-graph", "qubes-policy", "qubes-policy-editor", "qubes-policy-lint", "qubes-prefs",
    "qubesd-query", "qvm-block", "qvm-check", "qvm-clone", "qvm-console-dispvm", "qvm-copy-to-vm", "qvm-create", "qvm-device",
    "qvm-features", "qvm-firewall", "qvm-kill", "qvm-ls", "qvm-move-to-vm", "qvm-notes", "qvm-pause", "qvm-pci", "qvm-pool",
    "qvm-prefs", "qvm-remove", "qvm-run", "qvm-service", "qvm-shutdown", "qvm-start", "qvm-tags", "qvm-unpause", "qvm-usb",
    "qvm-volume",
)
_ALL = " ".join((*TOOLS, "cloison"))

# Candidates are read as lines and never evaluated. Status 3: names of files are wanted.
_BASH = """\
# Completion for the tools of Cloison, made by: cloison completion bash
_cloison() {
    COMPREPLY=()
    local found status
    found=$(cloison complete --line "${COMP_LINE:0:COMP_POINT}" --breaks "$COMP_WORDBREAKS" 2>/dev/null)
    status=$?
    if [[ $status == 3 ]]; then
        compopt -o default -o filenames 2>/dev/null
    elif [[ -n $found ]]; then
        mapfile -t COMPREPLY <<< "$found"
        COMPREPLY=("${COMPREPLY[@]%%$'\\t'*}")
        [[ ${COMPREPLY[0]} == *[=:] ]] && compopt -o nospace 2>/dev/null
    fi
    return 0
}
complete -F _cloison TOOLS
"""

_ZSH = """\
#compdef TOOLS
# Completion for the tools of Cloison, made by: cloison completion zsh
_cloison() {
    local found word meaning
    local -a whole open shown_whole shown_open
    found=$(cloison complete -- "${(@Q)words[1,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)
    if (( $? == 3 )); then
        _files
        return
    fi
    while IFS=$'\\t' read -r word meaning; do
        [[ -n $word ]] || continue
        if [[ $word == *[=:] ]]; then
            open+=("$word"); shown_open+=("$word")
        else
            whole+=("$word"); shown_whole+=("$word${meaning:+  -- $meaning}")
        fi
    done <<< "$found"
    (( $#whole )) && compadd -l -d shown_whole -a whole
    (( $#open )) && compadd -S '' -d shown_open -a open
    (( $#whole + $#open ))
}
if [[ $funcstack[1] == _cloison ]]; then _cloison "$@"; else compdef _cloison TOOLS; fi
"""

_FISH = """\
# Completion for the tools of Cloison, made by: cloison completion fish
function __cloison_complete
    set -l found (cloison complete -- (commandline -opc) (commandline -ct | string unescape; or commandline -ct) 2>/dev/null)
    if test $status -eq 3
        __fish_complete_path (commandline -ct)
    else
        printf '%s\\n' $found
    end
end
for tool in TOOLS
    complete -c $tool -f -a '(__cloison_complete)'
end
"""


def script(shell: str) -> str:
    """Completion code for bash, zsh or fish."""
    return {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}[shell].replace("TOOLS", _ALL)
