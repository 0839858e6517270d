#!/usr/bin/perl
# Runs commands in a machine for the lab, which is on the other side of a virtio port; guest.go
# tells the frames. Every image of Debian has this much of Perl.
use strict;
use warnings;
use Errno qw(EAGAIN EINTR);
use Fcntl;
use POSIX qw(:sys_wait_h dup2 setsid);

my $name = shift;
my $chunk = 32768;
my $full = 1 << 20;    # what may wait for the lab before commands have to

sub port {
    for my $dir (glob '/sys/class/virtio-ports/*') {
        open my $file, '<', "$dir/name" or next;
        my $text = <$file> // '';
        chomp $text;
        return '/dev/' . ($dir =~ s{.*/}{}r) if $text eq $name;
    }
    die "there is no virtio port $name\n";
}

my $device = port();
sysopen my $line, $device, O_RDWR | O_NONBLOCK or die "opening $device: $!\n";
my ($in, $out) = ('', '');
my %command;           # by channel
my %channel;           # by PID

sub answer { my ($id, $kind, $text) = @_; $out .= pack('N a N', $id, $kind, length $text) . $text }

sub nonblocking { my $f = shift; fcntl $f, F_SETFL, O_NONBLOCK; return $f }

# The program, its arguments and its environment are separated by NUL: how many arguments,
# the arguments, the variables.
sub start {
    my ($id, $text) = @_;
    my ($count, @rest) = split /\0/, $text, -1;
    my @argv = splice @rest, 0, $count;
    pipe my $stdin, my $input or die "pipe: $!\n";
    pipe my $output, my $stdout or die "pipe: $!\n";
    pipe my $errors, my $stderr or die "pipe: $!\n";
    my $pid = fork // die "fork: $!\n";
    if (!$pid) {
        setsid();
        $SIG{CHLD} = $SIG{PIPE} = 'DEFAULT';
        dup2(fileno $stdin, 0);
        dup2(fileno $stdout, 1);
        dup2(fileno $stderr, 2);
        %ENV = map { split /=/, $_, 2 } @rest;
        chdir '/';
        no warnings 'exec';
        exec { $argv[0] } @argv;
        syswrite STDERR, "$argv[0]: $!\n";
        POSIX::_exit(127);
    }
    $channel{$pid} = $id;
    $command{$id} = {
        pid => $pid, stdin => nonblocking($input), pending => '', ended => 0, status => undef,
        O => nonblocking($output), X => nonblocking($errors),
    };
}

sub receive {
    my ($id, $kind, $text) = @_;
    return start($id, $text) if $kind eq 'R';
    my $c = $command{$id} or return;
    if ($kind eq 'I') { $c->{pending} .= $text if $c->{stdin} }
    elsif ($kind eq 'E') { $c->{ended} = 1 }
    elsif ($kind eq 'K') {
        kill 'KILL', -$c->{pid} unless defined $c->{status};
        delete $command{$id};
    }
}

# again reports whether a call failed only for now.
sub again { return $!{EAGAIN} || $!{EINTR} }

sub feed {
    my $c = shift;
    my $n = syswrite $c->{stdin}, $c->{pending};
    if (defined $n) { substr $c->{pending}, 0, $n, '' }
    elsif (!again()) { $c->{stdin} = undef }
}

sub collect {
    my ($id, $c, $kind) = @_;
    my $n = sysread $c->{$kind}, my $text, $chunk;
    if ($n) { answer($id, $kind, $text) }
    elsif (defined $n || !again()) { $c->{$kind} = undef }
}

sub reap {
    while ((my $pid = waitpid -1, WNOHANG) > 0) {
        my ($id, $status) = (delete $channel{$pid}, $?);
        next unless defined $id && $command{$id};
        $command{$id}{status} = WIFSIGNALED($status) ? 128 + WTERMSIG($status) : WEXITSTATUS($status);
    }
}

$SIG{PIPE} = 'IGNORE';
$SIG{CHLD} = sub { };    # ends select
answer(0, 'H', '');
while (1) {
    reap();
    my ($readers, $writers) = ('', '');
    vec($readers, fileno $line, 1) = 1;
    vec($writers, fileno $line, 1) = 1 if length $out;
    for my $id (keys %command) {
        my $c = $command{$id};
        # What it has started may hold its output open: that is waited for, as by a shell's pipe.
        if (defined $c->{status} && !$c->{O} && !$c->{X}) {
            answer($id, 'S', $c->{status});
            vec($writers, fileno $line, 1) = 1;
            delete $command{$id};
            next;
        }
        if ($c->{stdin}) {
            if (length $c->{pending}) { vec($writers, fileno $c->{stdin}, 1) = 1 }
            elsif ($c->{ended}) { $c->{stdin} = undef }
        }
        for my $kind ('O', 'X') {
            vec($readers, fileno $c->{$kind}, 1) = 1 if $c->{$kind} && length $out < $full;
        }
    }
    # A child that ends between reap and select ends no select: hence its time limit.
    my $wait = %channel ? 0.05 : undef;
    my ($readable, $writable) = ($readers, $writers);
    my $n = select $readable, $writable, undef, $wait;
    next if $n <= 0;
    for my $id (keys %command) {
        my $c = $command{$id};
        feed($c) if $c->{stdin} && vec $writable, fileno $c->{stdin}, 1;
        for my $kind ('O', 'X') {
            collect($id, $c, $kind) if $c->{$kind} && vec $readable, fileno $c->{$kind}, 1;
        }
    }
    if (vec $writable, fileno $line, 1) {
        my $sent = syswrite $line, $out, $chunk;
        if (defined $sent) { substr $out, 0, $sent, '' }
        elsif (!again()) { die "writing to the lab: $!\n" }
    }
    if (vec $readable, fileno $line, 1) {
        my $got = sysread $line, $in, $chunk, length $in;
        die "reading from the lab: $!\n" if !defined $got && !again();
        # As the machine wakes up, the port has nobody on its other side for a moment.
        select undef, undef, undef, 0.1 if defined $got && $got == 0;
        while (length $in >= 9) {
            my ($id, $kind, $size) = unpack 'N a N', $in;
            last if length $in < 9 + $size;
            receive($id, $kind, substr $in, 9, $size);
            substr $in, 0, 9 + $size, '';
        }
    }
}
