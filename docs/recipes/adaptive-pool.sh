#!/bin/sh
# An adaptive pool: a workstation that lends itself to the cluster while nobody sits at it.
#
#   adaptive-pool.sh join             it takes guests from now on
#   adaptive-pool.sh leave            it takes none, and those that are there are sent home first
#   adaptive-pool.sh auto [MINUTES]   join where no terminal was used for so long (15), else leave
#
# By the clock, in /etc/cron.d/pool:            By who sits there:
#   0 19 * * 1-5  root  PATH/adaptive-pool.sh join      * * * * *  root  PATH/adaptive-pool.sh auto
#   0 7  * * 1-5  root  PATH/adaptive-pool.sh leave
#
# Either may be repeated; nothing is done where it holds already.  What the workstation's own users started by mosrun
# may run on servers all the time (mosctl bring fetches it home).  A graphical session counts by its terminals only.
set -eu

usage() { echo "usage: adaptive-pool.sh join | leave | auto [MINUTES]" >&2; exit 2; }
takes_guests() { case ",$(mosctl status)," in *,block,*) false ;; esac }
join() { takes_guests || mosctl noblock; }
leave() { ! takes_guests || mosctl expel; }

case $#,${1-} in
1,join) join ;;
1,leave) leave ;;
1,auto | 2,auto)
    minutes=${2-15}
    case $minutes in '' | *[!0-9]* | 0) usage ;; esac
    # The kernel notes when somebody typed, and when something was shown.
    used=$(find /dev/pts /dev -maxdepth 1 \( -path '/dev/pts/[0-9]*' -o -path '/dev/tty[0-9]*' \) \
        \( -amin "-$minutes" -o -mmin "-$minutes" \) 2> /dev/null || :)
    if [ -n "$used" ]; then leave; else join; fi
    ;;
*) usage ;;
esac
