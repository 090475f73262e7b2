{{- /*
Secrets that are made once.

"library.kept" (dict "context" . "secret" NAME "key" KEY "new" VALUE)
    the value of KEY in the release's Secret NAME, in base64; VALUE where there is none yet
"library.password" (dict "context" . "secret" NAME "key" KEY)
    the same with a new password of 32 letters and digits

The value is looked up in the cluster at each upgrade. `helm template` and Argo CD cannot look
anything up and would make a new one each time: there, bring the Secret yourself.
Call it in one place only, the Secret's own template: each call may make another value.

"library.keep" .     the annotation that keeps such a Secret when the release is uninstalled: the volumes
                     stay too, and what is on them is of no use without it
*/ -}}

{{- define "library.kept" -}}
{{- $secret := lookup "v1" "Secret" .context.Release.Namespace .secret | default dict -}}
{{- dig "data" .key (b64enc .new) $secret -}}
{{- end -}}

{{- define "library.password" -}}
{{- include "library.kept" (merge (dict "new" (randAlphaNum 32)) .) -}}
{{- end -}}

{{- define "library.keep" -}}
helm.sh/resource-policy: keep
{{- end -}}
