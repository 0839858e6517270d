# Types a line into an interactive zsh, has it completed, and prints what has become of it.
zmodload zsh/zpty
zpty shell 'TERM=dumb zsh -f -i'
zpty -w shell 'PS1=; autoload -U compinit; compinit -u -D; print rea$((1))dy'
zpty -r shell out '*rea1dy*'
# Tab; then, at the start of the line, the command that prints it.
zpty -w -n shell "$1"$'\t\x01print -r -- completed: \n'
zpty -w shell 'print do$((1))ne'
zpty -r shell out '*do1ne*'
print -r -- "$out"
