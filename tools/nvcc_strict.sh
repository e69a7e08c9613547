#!/bin/sh
# Runs a command of nvcc's, and fails when ptxas reports lost performance: setmaxnreg ignored (C7508), wgmma
# serialised (C7510) and their kin. It calls these "info", which no -Werror covers. CMake's compiler launcher.
messages=$("$@" 2>&1)
status=$?
[ -z "$messages" ] || printf '%s\n' "$messages" >&2
case $messages in
*"Potential Performance Loss"*)
  echo "error: ptxas reports lost performance, see above" >&2
  status=1
  # An object left behind could pass for a good one in the next build.
  previous=
  for argument; do
    [ "$previous" != -o ] || rm -f "$argument"
    previous=$argument
  done
  ;;
esac
exit "$status"
