#!/bin/sh
# Builds the Debian package from the repository and PyPI: build.sh VENV PYTHON OUTPUT. `make deb` calls it.
#
# VENV has pip, build and what the manual's texts are made with; PYTHON is the interpreter that the package will run with,
# as a host has it. The same commit and PYTHON give the same bytes: no time but the commit's, no path but those on a host.
set -eu
umask 022
here=$(dirname "$(realpath "$0")")
repository=$(realpath "$here/../..")
venv=$(realpath "$1")
python=$2
output=$(realpath -m "$3")

SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$repository" log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
stage=$work/stage

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$repository/plugin/pageferry/__init__.py")
minor=$("$python" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])')
next=$("$python" -I -c 'import sys; print("%d.%d" % (sys.version_info[0], sys.version_info[1] + 1))')
home=$(dirname "$(realpath -s "$python")")
architecture=$(dpkg --print-architecture)
maintainer="${DEBFULLNAME:-pageferry} <${DEBEMAIL:-pageferry@pageferry.invalid}>"

# A virtual environment is three things: this file, a link to the interpreter, and the folder of packages. Made by hand,
# since venv writes the paths of the machine that it runs on.
site=$stage/opt/pageferry/lib/python$minor/site-packages
mkdir -p "$stage/opt/pageferry/bin" "$site"
printf 'home = %s\ninclude-system-site-packages = false\n' "$home" >"$stage/opt/pageferry/pyvenv.cfg"
ln -s "$home/$(basename "$python")" "$stage/opt/pageferry/bin/python3"
"$venv/bin/python" -m build --no-isolation --wheel --outdir "$work/wheel" "$repository" >"$work/build.log" 2>&1 || {
    cat "$work/build.log" >&2
    exit 1
}
install() {
    "$venv/bin/pip" --python "$python" install --quiet --disable-pip-version-check --root-user-action=ignore \
        --no-deps --no-compile --target "$site" "$@"
    rm -r "${site:?}/bin" # commands of the libraries, which nobody here needs, and one of ours with a path of this machine
}
install --only-binary=:all: --require-hashes -r "$here/requirements.txt"
install --no-index "$work"/wheel/*.whl
# Libraries' tests of themselves, a quarter of what is compiled.
find "$site" -type d -name tests -prune -exec rm -r {} +
# What pip notes about this machine.
find "$site" -path '*.dist-info/*' \( -name RECORD -o -name INSTALLER -o -name REQUESTED -o -name direct_url.json \) -delete
cat >"$stage/opt/pageferry/bin/pageferry" <<'SCRIPT'
#!/opt/pageferry/bin/python3 -I
import sys

from pageferry.cli.main import main

sys.exit(main())
SCRIPT
chmod 755 "$stage/opt/pageferry/bin/pageferry"
mkdir -p "$stage/usr/bin"
ln -s /opt/pageferry/bin/pageferry "$stage/usr/bin/pageferry"

# What Slurm's and PBS's configuration names has a path without Python's version in it.
mkdir -p "$stage/usr/lib/pageferry" "$stage/lib/systemd/system"
mv "$site/pageferry/share/hooks" "$stage/usr/lib/pageferry/hooks"
ln -s /usr/lib/pageferry/hooks "$site/pageferry/share/hooks"
mv "$stage/usr/lib/pageferry/hooks/systemd/pageferry.service" "$stage/lib/systemd/system/"
rmdir "$stage/usr/lib/pageferry/hooks/systemd"

PYTHONPATH=$repository/contrib "$venv/bin/python" -m manual "$work/texts"
mkdir -p "$stage/etc/pageferry/policy.d" "$stage/usr/share/man"
cp "$work/texts/pageferry.toml" "$stage/etc/pageferry/"
cp -r "$work"/texts/man* "$stage/usr/share/man/"
mkdir -p "$stage/usr/share/bash-completion/completions" "$stage/usr/share/zsh/vendor-completions" \
    "$stage/usr/share/fish/vendor_completions.d"
cp "$work/texts/completion/pageferry.bash" "$stage/usr/share/bash-completion/completions/pageferry"
cp "$work/texts/completion/pageferry.zsh" "$stage/usr/share/zsh/vendor-completions/_pageferry"
cp "$work/texts/completion/pageferry.fish" "$stage/usr/share/fish/vendor_completions.d/"

doc=$stage/usr/share/doc/pageferry
mkdir -p "$doc" "$stage/usr/share/lintian/overrides"
cp -r "$repository"/docs/* "$repository/README.md" "$here/copyright" "$doc/"
mkdir "$doc/examples"
cp -r "$repository/contrib/policy.d" "$repository/contrib/grafana" "$doc/examples/"
mkdir "$doc/examples/slurm.conf.d"
cp "$repository/contrib/slurm.conf.d/README.md" "$doc/examples/slurm.conf.d/"
cp "$repository/CHANGELOG.md" "$doc/NEWS.md"
cp "$here/lintian-overrides" "$stage/usr/share/lintian/overrides/pageferry"
printf 'pageferry (%s) unstable; urgency=medium\n\n  * What a user notices is in NEWS.md.\n\n -- %s  %s\n' \
    "$version" "$maintainer" "$(date -u -R -d "@$SOURCE_DATE_EPOCH")" >"$doc/changelog"
find "$stage/usr/share/man" "$doc/changelog" -type f -exec gzip -9n {} +

chmod -R u=rwX,go=rX "$stage"
find "$site" -name "*.so*" -exec chmod 644 {} +

# Compiled once, here, and not on each host. Python takes what is compiled while the source has the size and the time that
# are noted there; dpkg sets the times. Without a seed the order of sets differs from one compilation to the next.
find "$stage" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
env -i PYTHONHASHSEED=0 "$python" -s -m compileall -q --invalidation-mode timestamp -s "$stage" -p / "$site"

mkdir "$stage/DEBIAN"
sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@MAINTAINER@/$maintainer/" \
    -e "s/@PYTHON@/$minor/" -e "s/@NEXT_PYTHON@/$next/" \
    -e "s/@SIZE@/$(find "$stage" -type f -printf '%s\n' | awk '{ sum += int(($1 + 1023) / 1024) } END { print sum }')/" \
    "$here/control.in" >"$stage/DEBIAN/control"
cp "$here/conffiles" "$here/postinst" "$here/prerm" "$here/postrm" "$stage/DEBIAN/"
(cd "$stage" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | LC_ALL=C sort -z | xargs -0 md5sum) >"$work/md5sums"
mv "$work/md5sums" "$stage/DEBIAN/"
chmod 644 "$stage"/DEBIAN/*
chmod 755 "$stage/DEBIAN/postinst" "$stage/DEBIAN/prerm" "$stage/DEBIAN/postrm"
find "$stage" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

mkdir -p "$(dirname "$output")"
# A third larger than with xz, and four times as fast to unpack.
dpkg-deb --root-owner-group -Zgzip -z9 --build "$stage" "$output.new" >/dev/null
mv "$output.new" "$output"
