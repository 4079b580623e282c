{{- define "llmsec.name" -}}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{- end -}}
{{- define "llmsec.labels" -}}
app.kubernetes.io/name: llmsec-trace
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: {{ .Values.form }}
{{- end -}}
{{- define "llmsec.account" -}}{{ .Values.serviceAccount.name | default (include "llmsec.name" .) }}{{- end -}}
{{- define "llmsec.kube" -}}{{ .Values.kubeVersion | default .Capabilities.KubeVersion.Version }}{{- end -}}
{{- define "llmsec.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end -}}

{{/* What the form begins with, and `config` over it. */}}
{{- define "llmsec.config" -}}
{{- $capture := dict "node" (dict "all" true "memory_cap" "512MiB" "ring_size" "32MiB") "gateway" (dict "comms" (list "nginx" "envoy") "memory_cap" "1GiB" "ring_size" "64MiB") "sidecar" (dict "interfaces" (list "any") "memory_cap" "192MiB" "ring_size" "4MiB") -}}
{{- $share := dict "node" 1.0 "gateway" 1.0 "sidecar" 0.25 -}}
{{- $storage := dict "path" "/var/lib/llmsec-trace" "content" "redacted" "retention" (dict "bytes" (ternary "1GiB" "20GiB" (eq .Values.form "sidecar"))) -}}
{{- $begin := dict "capture" (index $capture .Values.form) "storage" $storage "security" (dict "budget" (dict "share" (index $share .Values.form))) "server" (dict "bind_address" "0.0.0.0:8080") "observability" (dict "metrics" (dict "address" "0.0.0.0" "port" 9090) "logging" (dict "format" "json")) -}}
{{- $given := deepCopy .Values.config -}}
{{- if and (eq .Values.form "gateway") (dig "capture" "all" false $given) }}{{- $_ := unset (index $begin "capture") "comms" }}{{- end -}}
{{- toYaml (mergeOverwrite $begin $given) -}}
{{- end -}}

{{- define "llmsec.resources" -}}
{{- $of := dict "node" (dict "requests" (dict "cpu" "250m" "memory" "512Mi") "limits" (dict "cpu" "2" "memory" "1280Mi")) "gateway" (dict "requests" (dict "cpu" "1" "memory" "1Gi") "limits" (dict "cpu" "4" "memory" "4Gi")) "sidecar" (dict "requests" (dict "cpu" "250m" "memory" "256Mi") "limits" (dict "cpu" "500m" "memory" "512Mi")) -}}
{{- toYaml (.Values.resources | default (index $of .Values.form)) -}}
{{- end -}}

{{/* BPF and PERFMON load and attach, SYS_PTRACE looks into others' processes, NET_RAW reads interfaces. SETUID, SETGID, CHOWN and KILL
     make the decoder another user, give it its folder and end it. */}}
{{- define "llmsec.capabilities" -}}
{{- $config := include "llmsec.config" . | fromYaml -}}
{{- $add := list "SETUID" "SETGID" "CHOWN" "KILL" -}}
{{- if ne .Values.form "sidecar" }}{{- $add = concat (list "BPF" "PERFMON" "SYS_PTRACE") $add }}{{- end -}}
{{- if dig "capture" "interfaces" (list) $config }}{{- $add = append $add "NET_RAW" }}{{- end -}}
{{- toYaml $add -}}
{{- end -}}

{{- define "llmsec.container" -}}
name: tap
image: {{ include "llmsec.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [agent, --config, /etc/llmsec-trace/config.yaml]
env:
  - {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
  {{- if .Values.rbac.nodesProxy }}
  - {name: NODE_IP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
  {{- end }}
  {{- if ne .Values.form "sidecar" }}
  - {name: LLMSEC_FINGERPRINT_KEY_FILE, value: /var/lib/llmsec-trace-key/{{ .Values.fingerprintKey.key }}}
  {{- else if .Values.fingerprintKey.secretName }}
  - {name: LLMSEC_FINGERPRINT_KEY_FILE, value: /var/lib/llmsec-trace-key/{{ .Values.fingerprintKey.key }}}
  {{- end }}
ports:
  - {name: health, containerPort: 8080}
  - {name: metrics, containerPort: 9090}
startupProbe: {httpGet: {path: /health, port: health}, periodSeconds: 2, failureThreshold: 60}
livenessProbe: {httpGet: {path: /health, port: health}, periodSeconds: 30, timeoutSeconds: 5}
readinessProbe: {httpGet: {path: /ready, port: health}, periodSeconds: 10, timeoutSeconds: 5}
resources:
  {{- include "llmsec.resources" . | nindent 2 }}
securityContext:
  runAsUser: 0
  readOnlyRootFilesystem: true
  {{- if .Values.privileged }}
  privileged: true
  {{- else }}
  privileged: false
  allowPrivilegeEscalation: false
  capabilities:
    drop: [ALL]
    add:
      {{- include "llmsec.capabilities" . | nindent 6 }}
  seccompProfile:
    {{- toYaml .Values.seccompProfile | nindent 4 }}
  {{- if and (ne .Values.form "sidecar") (semverCompare ">=1.30-0" (include "llmsec.kube" .)) }}
  appArmorProfile: {type: {{ .Values.appArmor }}}
  {{- end }}
  {{- end }}
  {{- with .Values.seLinuxOptions }}
  seLinuxOptions:
    {{- toYaml . | nindent 4 }}
  {{- end }}
volumeMounts:
  - {name: config, mountPath: /etc/llmsec-trace, readOnly: true}
  - {name: store, mountPath: /var/lib/llmsec-trace}
  {{- if or (ne .Values.form "sidecar") .Values.fingerprintKey.secretName }}
  - {name: key, mountPath: /var/lib/llmsec-trace-key{{ if .Values.fingerprintKey.secretName }}, readOnly: true{{ end }}}
  {{- end }}
  - {name: tmp, mountPath: /tmp}
  {{- if and (ne .Values.form "sidecar") (dig "sdk" "socket" "" .Values.config) }}
  - {name: sdk, mountPath: {{ dir .Values.config.sdk.socket }}}
  {{- end }}
  {{- range .Values.secrets }}
  - {name: secret-{{ . }}, mountPath: /etc/secrets/{{ . }}, readOnly: true}
  {{- end }}
{{- end -}}

{{- define "llmsec.volumes" -}}
- {name: config, configMap: {name: {{ include "llmsec.name" . }}}}
- {name: tmp, emptyDir: {sizeLimit: 256Mi}}
{{- if eq .Values.form "sidecar" }}
- {name: store, emptyDir: {sizeLimit: 2Gi}}
{{- else }}
- {name: store, hostPath: {path: {{ .Values.hostPaths.store }}, type: DirectoryOrCreate}}
{{- end }}
{{- if and (ne .Values.form "sidecar") (dig "sdk" "socket" "" .Values.config) }}
- {name: sdk, hostPath: {path: {{ .Values.hostPaths.sdk }}, type: DirectoryOrCreate}}
{{- end }}
{{- if .Values.fingerprintKey.secretName }}
- {name: key, secret: {secretName: {{ .Values.fingerprintKey.secretName }}, defaultMode: 0400}}
{{- else if ne .Values.form "sidecar" }}
- {name: key, hostPath: {path: {{ .Values.hostPaths.key }}, type: DirectoryOrCreate}}
{{- end }}
{{- range .Values.secrets }}
- {name: secret-{{ . }}, secret: {secretName: {{ . }}, defaultMode: 0400}}
{{- end }}
{{- end -}}

{{- define "llmsec.pod" -}}
metadata:
  labels:
    {{- include "llmsec.labels" . | nindent 4 }}
    {{- with .Values.podLabels }}{{ toYaml . | nindent 4 }}{{- end }}
  annotations:
    # A changed configuration rolls the pods. `kill -HUP` takes most of it without one (docs/agent.md).
    checksum/config: {{ include "llmsec.config" . | sha256sum }}
    {{- if ne .Values.form "sidecar" }}
    # A mesh's proxy has nothing to do here.
    sidecar.istio.io/inject: "false"
    linkerd.io/inject: disabled
    {{- if and (not .Values.privileged) (semverCompare "<1.30-0" (include "llmsec.kube" .)) }}
    container.apparmor.security.beta.kubernetes.io/tap: {{ .Values.appArmor | lower }}
    {{- end }}
    {{- end }}
    {{- with .Values.podAnnotations }}{{ toYaml . | nindent 4 }}{{- end }}
spec:
  {{- $config := include "llmsec.config" . | fromYaml }}
  {{- if ne .Values.form "sidecar" }}
  hostPID: true
  {{- if dig "capture" "interfaces" (list) $config }}
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  {{- end }}
  serviceAccountName: {{ include "llmsec.account" . }}
  automountServiceAccountToken: true
  {{- else }}
  automountServiceAccountToken: false
  {{- end }}
  {{- if ne .Values.form "sidecar" }}
  {{- if or .Values.priorityClass.name .Values.priorityClass.create }}
  priorityClassName: {{ .Values.priorityClass.name | default (include "llmsec.name" .) }}
  {{- end }}
  {{- end }}
  terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
  enableServiceLinks: false
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    {{- if eq .Values.form "sidecar" }}
    {{- toYaml .Values.sidecar.containers | nindent 4 }}
    {{- end }}
    -
      {{- include "llmsec.container" . | nindent 6 }}
  volumes:
    {{- include "llmsec.volumes" . | nindent 4 }}
    {{- if eq .Values.form "sidecar" }}{{- with .Values.sidecar.volumes }}{{ toYaml . | nindent 4 }}{{- end }}{{- end }}
{{- end -}}
