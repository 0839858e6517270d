package labtest

import (
	"encoding/json"
	"regexp"
	"strings"

	"ec2netd/cmd/vpclab/vpc"
)

// AdviceOf returns what ec2netctl doctor advises where it says text.
func (l *Instance) AdviceOf(text string) string {
	l.T.Helper()
	// Problems make it fail with 1, as does not being there at all, which leaves nothing to parse.
	said := l.Run("sh", "-c", "ec2netctl doctor --json=short || [ $? = 1 ]")
	var printed struct {
		Findings []struct{ Text, Advice string }
	}
	if err := json.Unmarshal([]byte(said), &printed); err != nil {
		l.T.Fatalf("doctor printed %q: %v", said, err)
	}
	for _, finding := range printed.Findings {
		if finding.Advice != "" && strings.Contains(finding.Text, text) {
			return finding.Advice
		}
	}
	l.T.Fatalf("doctor has no advice where it says %q: %s", text, said)
	return ""
}

// Between returns a function that cuts from an advice the command between two of its phrases; an empty
// one stands for the beginning or the end.
func (l *Instance) Between(after, before string) func(advice string) string {
	return func(advice string) string {
		l.T.Helper()
		_, command, found := strings.Cut(advice, after)
		if before != "" && found {
			command, _, found = strings.Cut(command, before)
		}
		if !found {
			l.T.Fatalf("no command between %q and %q: %s", after, before, advice)
		}
		return command
	}
}

// Follow runs the command that an advice ends with, after a phrase, as a user would who copies it,
// and returns it.
func (l *Instance) Follow(advice, after string) string {
	l.T.Helper()
	command := l.Between(after, "")(advice)
	if command == "" {
		l.T.Fatalf("%q has no command after %q", advice, after)
	}
	l.Run("sh", "-ec", command)
	return command
}

// commandPattern finds the commands in an advice: each goes on to the next punctuation mark.
var commandPattern = regexp.MustCompile(`(?:^|[ (])((?:sudo|systemctl|networkctl|ec2netctl|ifdown|dhclient|dhcpcd|dpkg|rpm|apt-get|rm) [^,;:()\n]*)`)

// CommandsIn returns the commands that an advice names somewhere in its sentences.
func (l *Instance) CommandsIn(advice string) (commands []string) {
	l.T.Helper()
	for _, found := range commandPattern.FindAllStringSubmatch(advice, -1) {
		commands = append(commands, strings.TrimSpace(strings.TrimSuffix(found[1], ".")))
	}
	if len(commands) == 0 {
		l.T.Fatalf("there is no command in %q", advice)
	}
	return commands
}

// Obey runs the commands that an advice names; a takeover on a terminal, where it is agreed to.
func (l *Instance) Obey(advice string) {
	l.T.Helper()
	for _, command := range l.CommandsIn(advice) {
		l.T.Logf("advised: %s", command)
		if strings.HasSuffix(command, "ec2netctl takeover") {
			l.TakeOver(vpc.Command{Argv: strings.Fields(command)})
		} else {
			l.Run("sh", "-ec", command)
		}
	}
}

// ToHaveIt returns the line of an error that says what to do, as in "To have it ...".
func (l *Instance) ToHaveIt(said string) string {
	l.T.Helper()
	for line := range strings.Lines(said) {
		if strings.HasPrefix(line, "To ") {
			return strings.TrimSpace(line)
		}
	}
	l.T.Fatalf("nothing says what to do: %s", said)
	return ""
}

// TakeOver runs a takeover on a terminal, and agrees to it.
func (l *Instance) TakeOver(c vpc.Command) {
	l.T.Helper()
	term := l.OnTerminal(c)
	term.Says("[y/N]")
	term.Types("y\n")
	if code := term.Wait(); code != 0 || !strings.Contains(term.Text(), "The ENIs are configured, as after a boot.") {
		l.T.Errorf("%q: exit code %d:\n%s", c.Argv, code, term.Text())
	}
}
