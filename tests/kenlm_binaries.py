"""Three files that KenLM 0.3.0's ``build_binary`` wrote, from WORDS by Kneser and Ney's smoothing at order 3."""

import base64
import zlib
from pathlib import Path

WORDS = "the cat sat on the mat\nthe dog sat on the log\na cat saw the dog\n"

_FILES = {
    "probing": (
        "c-qU&O)OBz$yLZGDJihh*U!#KO-##7%}LQq&d=3P&QD2INXswEO)OC;OD!tS%+FIW<zhg9274f}pAks>2Lg}?BUFYNOdhaD7UO}^"
        "0%$Y?nmi257UeymD%HD<n*lfA%K84Ww)jCdJDPYwo#I~0wo<U&Y(noV_1WrkIMLK-FM2AqM%{V|6UY-g+n+l>;4BBZ+i_RBX-@Tm"
        "r>sD>)BU?)leYTnvH{tfHZi0J#ohbP0b~niXJ5V~F3t`L4b>Gj#!7bD5-fP!`6Flkeo%lhFdREHTVd8dAm1KDuPb&%p?9lyqtGCA"
        "AbsfK=rqh8j!#S(EgOx6z0yD1fy8%IttzsPsqIj@ABmz49tQ584(6NJd&1P)uqp~KIkHQy<*eR*5dUdT^rgwQ8n>@q>$QWpA3sot"
        "owBcMf{ivvJvRH$0k>2gL#xUHCYbwJDj7`<-I&Q)Dfwt0h;LhNwtxN48@%`I<iPT)R~+NmedyC}6L(H9e~$XG&8_DHE?aBz*%RZw"
        "S=LO~@_Db%Q9N%A*1u~RbDz|zecRqI?f|=Yk|%FjM6l8#n12r)&c8cvuh2dIjd@`Cxb}o+_HPtoiS-{0Y|5{Q7ra(`z<}rPzEimk"
        "6V&#te|1j({oW(zS886hoX(WPb$+ky-VBX*-d5!@4~+NiYk4OfD0g7G!N=!&=k9pqto@@r45atG<{QTq-@o>O^v*Su+q7#&&smTf"
        "r{7z%6?Fejoe*$nUvo~%(XTPj%Ry>*PP5OOD!-xMFZSKOSt)IHmpEsJPTb_Q@2UNA<7YOl%da?x;Piu}HM@5HWOpu;D;II9d6STH"
        "!cC@nHpnhqYW5#I_E4I`=JWA$clOzo=4IP4*c96_lw_nbBqx?I6a#U79s{t9VX)B$il^kKGvokqB2cEB0RS}>R_F"
    ),
    "trie": (
        "c-qU&O)OBz$yLZGDJihh*U!#KO-##7%}LQq&d=3P&QD2INXswEO)OC;OD!tS%+FIW<zhg9274f}pAks>2Lg}?BUFYNOdhajf{KAK"
        "4^&P7jRpa3C|yvexYx3+ltC~%`|>4mady=eHO5MI+7eFp?}km<>aWX{^ZjFO@q=tOq4$;gZ1p+&ceX!we!y9-z38db8g=U>vqgDN"
        "s7m#2bKKQ#np3^t>84E#=|OS#zQgSKku!fk$l(Z^j~$w=Fl!%-w_Ck?KQez^u`8I*h$hdBW*!TgJUg0x4kYy;J{OvLUNk-*8lRs5"
        "6$mh32aY%1e7enY@eAwn60`SU#%d^oSL4&%uONnKO77hkAot6pK^ZE$CqMcCV(7rsn0^v?{S3sgmH4#hGl=0jak}C=5W_bUs0+-<"
        "f-*wgi>G`5F=9X4b%8}vU%Y+%5yU8krxY0D1f$(!XAh0U`G*X?{J!w>>E8Bp`tNO*EbRNH$>Y3V|AxrC>W5dJzO#Nl{rf$O{d>Nv"
        "1cjX_H~9E`Z)>Oh`=c9;x9hKLUr~eNXPeTzY&!;<VmpRJhT_B$24He!u+ax{bMn&}l7XC(j8vdRIYWLPLkds`00uJn4g"
    ),
    "no_words": (
        "c-qU&O)OBz$yLZGDJihh*U!#KO-##7%}LQq&d=3P&QD2INXswEO)OC;OD!tS%+FIW<zhg9274f}pAks>2Lg}?BUFYNOdhajg7QJ)"
        "JW#d(8Vv&6P`aQ_aj#`tDT82k_T@|B;_Rv`YK)cav?ZMG-wm6z)nAt@=ljRn;s@DmLhmc}+3Iul?`(hW{D8Aud(l&=HR{$&W{dKk"
        "P?hT4=D4ffG^cvO(@mQg(u3meeTUieBWM18ki!u+A3HQ#Vb(qvZ?}5)eq{c-VplMq5lx;M%{&$~d3H4Y97yUxd@eNgyl8wrG(JBA"
        "DiC164jga1`E;A*;uqHCC1&rzjMY#Eug0gjUqKAfl-#>7K<<}GgECZhPk!_P#L$7MG5sX)`Wc8}EAeU1XAr}6;&jD#Ack)yP#2hy"
        "1!aV~7f<;BV#I#7>jI0UzIgliBZyH7Pbo0Q2}Zle&K??x^A8z(`F-K%)4lEI^xxYqS=jeYlgD|#{tc0N)eo;ceP{iA`uBSl`}cfT"
        "2?{$=Zt(H>-que0_eVDxZ`WVhzM=-j&j7}A>NE"
    ),
}


def write_binary(path: Path, kind: str) -> Path:
    """Write one of the files: "probing" (the default of ``build_binary``), "trie", or "no_words" (``-v``)."""
    path.write_bytes(zlib.decompress(base64.b85decode(_FILES[kind])))
    return path
