import json, shutil, traceback, torch, pytest
import numpy as np
from latent_shift import LatentShiftPipeline
from latent_shift.pipelines import *

def attempt(label, f):
    try: r=f(); print("##",label,"->", type(r).__name__)
    except BaseException as e: print("##",label,"->",type(e).__module__,type(e).__name__, str(e)[:300])

def test_a(pipeline, saved, tmp_path, as_users_run):
    for f in sorted(saved.rglob("*")):
        print(f.relative_to(saved), f.stat().st_size if f.is_file() else "")
    for f in saved.rglob("*.json"):
        if f.name!="tokenizer.json": print(f.relative_to(saved), f.read_text())
    p=pipeline; g=lambda: torch.Generator().manual_seed(0)
    call=lambda **k: p(**{"prompt":"a red heart","num_inference_steps":2,"output_type":"np","generator":g(),**k})
    for k in [dict(height=0),dict(width=-8),dict(height=20),dict(prompt=5),dict(prompt=[]),dict(prompt=[1]),dict(prompt=""),dict(num_inference_steps=2000),dict(num_inference_steps=0),dict(num_frames=0),dict(num_frames=2.5),
      dict(generator=(g(),)),dict(generator=[g(),g()]),dict(callback_on_step_end=lambda *a:None,callback_on_step_end_tensor_inputs=["nope"]),
      dict(boundary="mirror"),dict(output_type="gif"),dict(decode_chunk_size=0),dict(num_videos_per_prompt=0),dict(negative_prompt=["a","b"]),dict(negative_prompt_embeds=torch.zeros(1,3,12)),dict(prompt=None,prompt_embeds=torch.zeros(1,8,12)),dict(prompt=None,prompt_embeds=torch.zeros(2,8,5)),dict(latents=torch.zeros(1,4,3,2,3)),dict(guidance_scale=float("nan")),dict(eta=0.5), dict(prompt=("a","red"))]:
        attempt(k, lambda: call(**k))
    attempt("nosize", lambda: LatentShiftPipeline(**p.components)("a", num_inference_steps=1))
    def dam(name, fn, load=LatentShiftPipeline.from_pretrained):
        d=tmp_path/name; shutil.copytree(saved,d)
        fn(d); attempt(name, lambda: load(d))
    def trunc(rel): 
        def f(d): b=(d/rel).read_bytes(); (d/rel).write_bytes(b[:len(b)//2])
        return f
    def garb(rel): return lambda d:(d/rel).write_bytes(b"garbage"*9)
    def rm(rel): return lambda d:(d/rel).unlink() if (d/rel).is_file() else shutil.rmtree(d/rel)
    for rel in ["unet/diffusion_pytorch_model.safetensors","vae/diffusion_pytorch_model.safetensors","text_encoder/model.safetensors"]:
        dam("trunc-"+rel.replace("/","-"), trunc(rel)); dam("garb-"+rel.replace("/","-"), garb(rel)); dam("rm-"+rel.replace("/","-"), rm(rel))
    for rel in ["unet/config.json","vae/config.json","text_encoder/config.json","scheduler/scheduler_config.json","tokenizer/tokenizer.json","tokenizer/tokenizer_config.json","model_index.json"]:
        dam("garb-"+rel.replace("/","-"), garb(rel)); dam("rm-"+rel.replace("/","-"), rm(rel))
    for rel in ["unet","vae","text_encoder","tokenizer","scheduler"]: dam("rmdir-"+rel, rm(rel))
    from safetensors.torch import load_file, save_file
    def keys(rel, change):
        def f(d):
            t=load_file(d/rel); change(t); save_file(t,d/rel,metadata={"format":"pt"})
        return f
    for rel in ["unet/diffusion_pytorch_model.safetensors","vae/diffusion_pytorch_model.safetensors","text_encoder/model.safetensors"]:
        n=rel.split("/")[0]
        dam("missing-"+n, keys(rel, lambda t:t.pop(sorted(t)[0])))
        dam("unexpected-"+n, keys(rel, lambda t:t.update(nonsense=torch.zeros(2))))
        def shape(t): k=sorted(t)[0]; t[k]=torch.zeros(3,2)
        dam("shape-"+n, keys(rel, shape))
    attempt("nofolder", lambda: LatentShiftPipeline.from_pretrained(tmp_path/"none"))
    attempt("nofolder2", lambda: LatentShiftPipeline.from_pretrained("none/none"))
    attempt("nofolder3", lambda: LatentShiftPipeline.from_pretrained("none"))
    for a in [dict(model="nope"),dict(model="emoji"),dict(model=str(saved),device="banana"),dict(model=str(saved),device="cuda:7"),dict(model=str(saved),device="cuda"),dict(model=str(saved),dtype="fp8"),dict(model=str(saved),device="meta"),dict(model=str(saved))]:
        attempt(a, lambda: load_pipeline(**a))
    attempt("sched", lambda: make_scheduler("nope",{}))
    (tmp_path/"foreign").mkdir(); (tmp_path/"foreign"/"thesis").write_text("x")
    attempt("foreign", lambda: p.save_pretrained(tmp_path/"foreign")); print(list((tmp_path/"foreign").iterdir()))
    (tmp_path/"file").write_text("x"); attempt("file", lambda: p.save_pretrained(tmp_path/"file")); attempt("file/x", lambda: p.save_pretrained(tmp_path/"file"/"x"))
    import os; (tmp_path/"cwd").mkdir(); os.chdir(tmp_path/"cwd"); attempt("cwd", lambda: p.save_pretrained("."));print(os.listdir("."), os.listdir(".."))
    d=tmp_path/"bin"; shutil.copytree(saved,d); torch.save(load_file(d/"unet/diffusion_pytorch_model.safetensors"), d/"unet/diffusion_pytorch_model.bin"); (d/"unet/diffusion_pytorch_model.safetensors").unlink()
    attempt("bin", lambda: LatentShiftPipeline.from_pretrained(d))
    attempt("unsafe save", lambda: p.save_pretrained(tmp_path/"unsafe", safe_serialization=False))
    attempt("variant save", lambda: p.save_pretrained(tmp_path/"variant", variant="fp16"))
    attempt("variant load", lambda: LatentShiftPipeline.from_pretrained(tmp_path/"variant", variant="fp16"))
