#!/bin/sh
# A server pool: some nodes take everybody's programs, all others (workstations) take nobody's.
#
#   server-pool.sh SERVERS      on each node, e.g.  server-pool.sh 1-4,9
#   mosdo PATH/server-pool.sh 1-4,9                 on all nodes at once
#
# What users start by mosrun on a workstation moves to servers and home again, and to no other workstation.  Guests
# that a workstation has now are sent home.  It holds over restarts, until `mosctl noblock` or another pool.
set -eu

usage() { echo "usage: server-pool.sh SERVERS, ids and ranges of them as in 1-4,9" >&2; exit 2; }
[ $# -eq 1 ] || usage
case $1 in '' | *[!0-9,-]*) usage ;; esac

own=$(mosctl whois | sed -n 's/.*#\([0-9]*\)$/\1/p')
for range in $(echo "$1" | tr , ' '); do
    if [ "$own" -ge "${range%-*}" ] && [ "$own" -le "${range#*-}" ]; then
        mosctl noblock
        exit
    fi
done
mosctl expel  # and takes none from now on
