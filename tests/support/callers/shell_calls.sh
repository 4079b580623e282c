#!/bin/sh
# Thirteen calls by curl or wget, a process each: PROGRAM URL CAFILE. Prints one line for each: process id, call, body in base64.
program="$1" url="$2" cafile="$3"
for n in 0 1 2 3 4 5 6 7 8 9 10 11 12; do
    stream=false
    [ $((n % 2)) = 0 ] || stream=true
    body="{\"model\":\"tiny\",\"messages\":[{\"role\":\"user\",\"content\":\"call $n by $program\"}],\"max_tokens\":12,\"stream\":$stream}"
    if [ "$program" = curl ]; then
        curl -s --http1.1 --cacert "$cafile" -H "content-type: application/json" -H "X-Call: curl-$n" -d "$body" "$url/v1/chat/completions" >"/tmp/.llmsec-$$" &
    else
        wget -q -O "/tmp/.llmsec-$$" --ca-certificate="$cafile" --header="content-type: application/json" --header="X-Call: wget-$n" \
            --post-data="$body" "$url/v1/chat/completions" &
    fi
    pid=$!
    wait $pid
    echo "$pid $n $(base64 -w0 <"/tmp/.llmsec-$$")"
done
rm -f "/tmp/.llmsec-$$"
