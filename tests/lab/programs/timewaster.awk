# Loops in loops, with floating point; in rounds until there is a file "enough".
# What users of openMosix started many times to see their cluster fill.
function work(    i, j, sum) {
    sum = 0
    for (i = 1; i < 400; i++) for (j = 1; j < 1000; j++) sum += sin(i) * cos(j) / (i + j)
    return sprintf("%.12f", sum)
}
BEGIN {
    print "begun"; fflush()
    first = work()
    while ((getline line < "enough") < 0) if (work() != first) { print "a round came out otherwise"; exit 1 }
    print first
}
