#!/bin/sh
# Builds the AWS Lambda runtime client for Node.js into the image's tree, and what gives each
# process random numbers of its own.
#
#   nodejs-build.sh PACKAGES SDK TREE
#
# PACKAGES has the unpacked npm packages by name, SDK the unpacked Debian packages for building,
# TREE becomes the image. Needs a C++ compiler, cmake, autoconf, automake and libtool.
set -eu
client="$1/aws-lambda-ric"
addon_api="$1/node-addon-api"
headers="$2/usr/include"
here="$(cd "$(dirname "$0")" && pwd)"
own="$3/var/runtime/snapback"
place="$3/var/runtime/node_modules/aws-lambda-ric"

# The package's own first step: curl and aws-lambda-cpp, from sources that it brings.
cd "$client"
export MAKEFLAGS="-j$(nproc)"
./scripts/preinstall.sh

# What its second step does through node-gyp, which would bring a hundred packages for one call of
# the compiler.
g++ -std=c++17 -O2 -fPIC -fvisibility=hidden -shared -DNODE_GYP_MODULE_NAME=rapid-client \
    -DBUILDING_NODE_EXTENSION -I "$headers/node" -I "$headers" -I "$addon_api" -I deps/artifacts/include \
    src/rapid-client.cc -L deps/artifacts/lib -laws-lambda-runtime -lcurl \
    -Wl,--gc-sections -s -o dist/rapid-client.node

mkdir -p "$place"
cp -R bin dist package.json LICENSE NOTICE THIRD-PARTY-LICENSES "$place"

mkdir -p "$own"
g++ -std=c++17 -O2 -Wall -Wextra -Werror -fPIC -fvisibility=hidden -shared \
    -DNODE_GYP_MODULE_NAME=uniqueness -DBUILDING_NODE_EXTENSION -I "$headers/node" -I "$headers" \
    -I "$headers/x86_64-linux-gnu" "$here/nodejs-uniqueness.cc" -s -o "$own/uniqueness.node"
cp "$here/nodejs-uniqueness.cjs" "$own/uniqueness.cjs"
