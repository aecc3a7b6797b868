{{/* This file is the same in every chart that runs something; a test compares. */}}

{{/* ambit.labels are on every object. */}}
{{- define "ambit.labels" -}}
{{ include "ambit.podLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* ambit.podLabels are on pods: those that no new version changes. */}}
{{- define "ambit.podLabels" -}}
app: {{ include "ambit.app" . }}
app.kubernetes.io/name: {{ include "ambit.app" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: ambit
{{- end }}

{{/* ambit.app is the value of the label app, by which pods are selected. */}}
{{- define "ambit.app" -}}
{{- if eq .Chart.Name "cni" }}ambit-cni{{ else }}{{ .Chart.Name }}{{ end }}
{{- end }}

{{/* ambit.tag is a tag as it was written; a number is one without a fraction. */}}
{{- define "ambit.tag" -}}
{{- if kindIs "float64" . }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{/* ambit.image is the reference of the image .image: hub/image:tag, or as it is when it holds a slash. */}}
{{- define "ambit.image" -}}
{{- if contains "/" .image -}}
{{ .image }}
{{- else -}}
{{ .root.Values.hub | default .root.Values.global.hub }}/{{ .image }}:{{ include "ambit.tag" (.root.Values.tag | default .root.Values.global.tag) }}
{{- end -}}
{{- end }}

{{/* ambit.pullSecrets is the pod's field, or nothing. */}}
{{- define "ambit.pullSecrets" -}}
{{- with .Values.imagePullSecrets | default .Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* ambit.scheduling are the fields that say where a pod runs. */}}
{{- define "ambit.scheduling" -}}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* ambit.namespace refuses namespaces that the programs do not know. */}}
{{- define "ambit.namespace" -}}
{{- if ne .Release.Namespace .Values.global.istioNamespace }}
{{- fail (printf "%s works in namespace %s only, not in %s" (include "ambit.app" .) .Values.global.istioNamespace .Release.Namespace) }}
{{- end }}
{{- end }}
