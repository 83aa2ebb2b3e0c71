# A file of 10 MB is copied to a directory of each node and back, by way of /mfs; in rounds until a file "enough".
# openMosix's stress test had an mfstest that did so.  Arguments: the directories.
seq 1500000 | head -c 10485760 > original
echo begun
while :; do
    for place in "$@"; do
        cp original "$place/copy" && cp "$place/copy" back && cmp original back || exit 1
        rm "$place/copy" back || exit 1
    done
    [ ! -e enough ] || break
done
md5sum < original
