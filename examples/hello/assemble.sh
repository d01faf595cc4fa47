#!/bin/sh
# assemble.sh FILE LINE...: writes a static x86-64 program that prints the lines. No compiler: an ELF header, one
# program header, 28 bytes of code and the text.
set -eu
[ "$(uname -m)" = x86_64 ] || { echo "assemble.sh: knows only x86_64, this is $(uname -m)" >&2; exit 1; }
file=$1; shift
printf '%s\n' "$@" >/tmp/text
length=$(wc -c </tmp/text)

# little endian: number of bytes, value
le() {
  count=$1; value=$2
  while [ "$count" -gt 0 ]; do
    printf "\\$(printf %03o $((value & 255)))"
    value=$((value >> 8)); count=$((count - 1))
  done
}

base=$((0x400000)); headers=120; code=28
{
  printf '\177ELF'; le 1 2; le 1 1; le 1 1; le 9 0        # 64 bit, little endian, version 1, System V
  le 2 2; le 2 62; le 4 1                                 # an executable, for x86-64
  le 8 $((base + headers)); le 8 64; le 8 0               # entry point, program headers, no sections
  le 4 0; le 2 64; le 2 56; le 2 1; le 2 0; le 2 0; le 2 0
  le 4 1; le 4 5; le 8 0; le 8 $base; le 8 $base          # load all of the file, readable and executable
  le 8 $((headers + code + length)); le 8 $((headers + code + length)); le 8 4096

  printf '\152\001\130'                                   # push 1; pop rax          write
  printf '\211\307'                                       # mov edi, eax             standard output
  printf '\110\215\065'; le 4 16                          # lea rsi, [rip + 16]      the text
  printf '\272'; le 4 "$length"                           # mov edx, length
  printf '\017\005'                                       # syscall
  printf '\061\377'                                       # xor edi, edi             success
  printf '\270'; le 4 60                                  # mov eax, 60              exit
  printf '\017\005'                                       # syscall
  cat /tmp/text
} >"$file"
chmod 755 "$file"
