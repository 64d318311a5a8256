#!/bin/sh
# Draws the secrets that docker-compose.yml mounts, into this folder. What is there already stays as it is.
# Containers read them through the group whose id it prints, for the file .env beside docker-compose.yml. The folder
# keeps others on this machine out.
set -eu
cd "${1:-$(dirname "$0")}"
chmod 700 .
umask 027

draw() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }

# The master key cannot be drawn again for an installation that exists: back it up.
[ -e master_key ] || { draw >master_key.new && mv master_key.new master_key; }
[ -e clickhouse_password ] || { draw >clickhouse_password.new && mv clickhouse_password.new clickhouse_password; }
hash=$(sha256sum clickhouse_password)
cat >clickhouse_user.xml <<XML
<clickhouse>
  <users>
    <default remove="remove"/>
    <immutable>
      <password_sha256_hex>${hash%% *}</password_sha256_hex>
      <networks><ip>::/0</ip></networks>
      <profile>default</profile>
      <quota>default</quota>
    </immutable>
  </users>
</clickhouse>
XML
echo "IMMUTABLE_SECRETS_GID=$(stat -c %g master_key)"
