# A portfolio's value at risk, by forked children that simulate it; in rounds until there is a file "enough".
# openMosix's stress test had such a forked simulation.
use strict; $| = 1;

sub simulated {
    my ($seed) = @_;
    my $x = 4711 + 31 * $seed;
    my $uniform = sub { $x = $x * 16807 % 2147483647; $x / 2147483647 };
    my @ends;
    for (1 .. 700) {
        my $value = 100;
        for (1 .. 12) {
            my $normal = sqrt(-2 * log $uniform->()) * cos(6.283185307179586 * $uniform->());
            $value *= exp(0.004 + 0.06 * $normal);
        }
        push @ends, $value;
    }
    return @ends;
}

sub work {
    my @from;
    for my $seed (1 .. 6) {
        my $child = open my $pipe, '-|';
        if (!$child) { printf "%.9f\n", $_ for simulated($seed); exit 0 }
        push @from, $pipe;
    }
    my @ends;
    for my $pipe (@from) { push @ends, <$pipe>; close $pipe or die "a child ended with $?\n" }
    @ends = sort { $a <=> $b } map { $_ + 0 } @ends;
    my $sum = 0; $sum += $_ for @ends;
    return sprintf "%d %.6f %.6f", scalar @ends, $sum / @ends, $ends[@ends / 20];
}

print "begun\n";
my $first = work();
until (-e 'enough') { my $again = work(); die "a round came out otherwise: $again\n" if $again ne $first }
print "$first\n";
