#!/usr/bin/env bash
# moto 5.2.5, the EC2 emulator, as a stand-in for a VPC's route table:
#
# - DryRun=True is carried out: CreateRoute adds the route and answers 200, DeleteRoute removes it. EC2 changes nothing
#   and answers DryRunOperation (EC2 API reference, "Common parameters").
# - A second CreateRoute for the same destination succeeds and changes the target. EC2 answers RouteAlreadyExists.
# - A route stays "active" after its network interface is deleted. EC2 marks it "blackhole".
#
# So a permission check by DryRun passes against moto and damages the table, and a test that waits for a conflict or
# for a blackhole waits for ever. Needs python3 with venv and about 300 MB in a temporary folder.
set -euo pipefail
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'moto[ec2,server]==5.2.5' 'boto3==1.42.0'

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$work/venv/bin/moto_server" -H 127.0.0.1 -p "$port" >"$work/server.log" 2>&1 &
server=$!

cat >"$work/observe.py" <<'PY'
import sys, time, urllib.request
import boto3
from botocore.exceptions import ClientError

endpoint = f"http://127.0.0.1:{sys.argv[1]}"
for _ in range(100):
    try:
        urllib.request.urlopen(endpoint + "/moto-api/data.json", timeout=1).read()
        break
    except OSError:
        time.sleep(0.1)
ec2 = boto3.client("ec2", region_name="us-east-1", endpoint_url=endpoint,
                   aws_access_key_id="test", aws_secret_access_key="test")
vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
table = ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
first, second = (ec2.create_network_interface(SubnetId=subnet)["NetworkInterface"]["NetworkInterfaceId"]
                 for _ in range(2))

def route(destination):
    routes = ec2.describe_route_tables(RouteTableIds=[table])["RouteTables"][0]["Routes"]
    return next(((r["NetworkInterfaceId"], r["State"]) for r in routes
                 if r["DestinationCidrBlock"] == destination), None)

def create(destination, interface, **options):
    try:
        ec2.create_route(RouteTableId=table, DestinationCidrBlock=destination,
                         NetworkInterfaceId=interface, **options)
        return "accepted"
    except ClientError as error:
        return error.response["Error"]["Code"]

names = {first: "first interface", second: "second interface"}
def shown(destination):
    found = route(destination)
    return "absent" if found is None else f"{names[found[0]]}, {found[1]}"

a, b = "10.5.1.0/24", "10.5.2.0/24"
print("CreateRoute with DryRun:", create(a, first, DryRun=True), "->", shown(a))
ec2.delete_route(RouteTableId=table, DestinationCidrBlock=a, DryRun=True)
print("DeleteRoute with DryRun: accepted ->", shown(a))
print("CreateRoute:", create(b, first), "->", shown(b))
print("CreateRoute again, another target:", create(b, second), "->", shown(b))
ec2.delete_network_interface(NetworkInterfaceId=second)
print("DeleteNetworkInterface of the target: accepted ->", shown(b))
PY
"$work/venv/bin/python" "$work/observe.py" "$port" | tee "$work/seen"

cat >"$work/expected" <<'TEXT'
CreateRoute with DryRun: accepted -> first interface, active
DeleteRoute with DryRun: accepted -> absent
CreateRoute: accepted -> first interface, active
CreateRoute again, another target: accepted -> second interface, active
DeleteNetworkInterface of the target: accepted -> second interface, active
TEXT
diff "$work/expected" "$work/seen" || { echo "moto no longer behaves as described above" >&2; exit 1; }
echo "as described: moto 5.2.5 carries out DryRun, replaces on CreateRoute and keeps routes active"
